"""The random streams of one micro-batch.

Everything random in a training step is a function of the seed, the step and a sequence's place in the global batch, and in
validation of the seed and the sequence's number in its split: however a batch is cut into micro-batches and processes, a
sequence meets the same times and the same noise. So a resumed run needs no saved generator state either.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = (1 << 63) - 1
_PER_SEQUENCE = 7  # stream of the seed, beside 0 to 2 below and those of training
# splitmix64's constants as the signed numbers that tensors hold; their products wrap around
_GAMMA, _FIRST, _SECOND = (x - (1 << 64) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def mix_seed(*parts: int) -> int:
    """A well-spread 63-bit seed from a few integers (splitmix64 finaliser applied part by part)."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (part & ((1 << 64) - 1))) + 0x9E3779B97F4A7C15 & ((1 << 64) - 1)
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & ((1 << 64) - 1)
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & ((1 << 64) - 1)
        state ^= state >> 31
    return state & _MASK


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, zeros coming in: int64 has no such shift."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _scramble(x: Tensor) -> Tensor:
    """splitmix64's finaliser, int64 of any shape."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


class Rows:
    """A source of random numbers for the sequences of a batch, one a row: those of a row follow from its place alone.

    `randn`, `rand` and `randint` draw from it. Tensors are drawn row by row, so the first axis is the sequences'. All shares
    of a global batch must draw equally often.

    Args:
        seed: of all of them.
        device: where the tensors are drawn.
        places: what the places of `count` rows are.
    """

    def __init__(self, seed: int, device: torch.device, places: Callable[[int], Sequence[int]]):
        self.device, self.places = device, places
        self._seed, self._calls = seed, 0
        self._generator = torch.Generator(device)

    def seeds(self, count: int) -> list[int]:
        """A seed for each row."""
        base = mix_seed(self._seed, self._calls)
        self._calls += 1
        return [mix_seed(base, place) for place in self.places(count)]

    def fill(self, out: Tensor, draw: Callable[[Tensor, torch.Generator], object]) -> Tensor:
        """Fills each row of `out` by `draw(row, generator)`, in place."""
        for row, seed in zip(out.unbind(0), self.seeds(len(out)), strict=True):
            draw(row, self._generator.manual_seed(seed))
        return out

    def part(self, rows: Sequence[int], count: int) -> "Rows":
        """A source for some of `count` rows, by their indices; apart from this one."""
        places = self.places(count)
        chosen = [places[row] for row in rows]
        found = Rows(mix_seed(self._seed, self._calls, 1), self.device, lambda _: chosen)
        self._calls += 1
        return found


Source = torch.Generator | Rows


def randn(source: Source, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers on the source's device."""
    if isinstance(source, Rows):
        return source.fill(torch.empty(shape, dtype=dtype, device=source.device), lambda row, g: row.normal_(generator=g))
    return torch.randn(shape, generator=source, device=source.device, dtype=dtype)


def rand(source: Source, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers in [0, 1) on the source's device."""
    if isinstance(source, Rows):
        return source.fill(torch.empty(shape, dtype=dtype, device=source.device), lambda row, g: row.uniform_(generator=g))
    return torch.rand(shape, generator=source, device=source.device, dtype=dtype)


def randint(source: Source, high: int, *shape: int) -> Tensor:
    """Whole numbers in [0, high), int64, on the source's device."""
    if isinstance(source, Rows):
        out = torch.empty(shape, dtype=torch.long, device=source.device)
        return source.fill(out, lambda row, g: row.random_(high, generator=g))
    return torch.randint(high, shape, generator=source, device=source.device)


def scattered(*keys: Tensor) -> Tensor:
    """Whole numbers in [0, 2^53) out of int64 keys that broadcast, and of nothing else."""
    found = torch.zeros((), dtype=torch.long, device=keys[0].device)
    for key in keys:
        found = _scramble(found + key * _GAMMA + _FIRST)
    return _shifted(found, 11)


@dataclass(frozen=True)
class Part:
    """Some sequences of a micro-batch: its share of a part of the global batch.

    Attributes:
        rows: where they stand in `Split.order`.
        draws: of them.
        exists: whether the part has sequences anywhere in the global batch.
    """

    rows: slice
    draws: "Draws"
    exists: bool

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start


@dataclass(frozen=True)
class Split:
    """The sequences of a micro-batch in two parts, one after the other.

    Attributes:
        order: (n,) int64, the sequence at each row.
        counted: (n,) float, 0 on a sequence that only fills an empty part, else 1.
        back: (B,) int64, the row of each sequence where it counts.
        parts: in order.
    """

    order: Tensor
    counted: Tensor
    back: Tensor
    parts: tuple[Part, Part]


class Draws:
    """Random numbers for one micro-batch.

    Args:
        seed: the run's seed.
        step: optimiser step the numbers belong to.
        share: index of this micro-batch in the global batch, in [0, num_shares): rank r with A accumulation steps holds
            shares r*A .. r*A + A-1 of world_size*A. Each share has equally many sequences, in the order of their places.
        num_shares: micro-batches in the global batch.
        device: where the tensors are drawn.
        places: of the sequences, where that order does not give them; None: as above.
        total: sequences of the global batch; None: of the shares, or with `places` unknown.

    Attributes:
        step: as given, for what changes in the course of training.
        rows: source of numbers for each sequence (noise, categorical draws), see `Rows`.
        local: generator of this share alone, for what does not belong to a sequence.
        shared: generator in the same state on every share; always on the CPU, so that ranks on different devices agree.
    """

    def __init__(
        self,
        seed: int,
        step: int = 0,
        share: int = 0,
        num_shares: int = 1,
        device: torch.device | str = "cpu",
        places: Sequence[int] | None = None,
        total: int | None = None,
    ):
        if not 0 <= share < num_shares:
            raise ValueError(f"share {share} is not in [0, {num_shares})")
        self.device = torch.device(device)
        self._seed, self._calls = seed, 0
        self.step, self.share, self.num_shares = step, share, num_shares
        self._places, self._total = places, total
        self.shared = torch.Generator("cpu").manual_seed(mix_seed(seed, step, 0))
        self.local = torch.Generator(self.device).manual_seed(mix_seed(seed, step, 1, share))
        self.rows = Rows(mix_seed(seed, step, 2), self.device, self.places)

    def places(self, count: int) -> Sequence[int]:
        """Where `count` sequences stand in the global batch."""
        if self._places is None:
            return range(self.share * count, (self.share + 1) * count)
        if len(self._places) != count:
            raise ValueError(f"{count} sequences asked for, these draws are of {len(self._places)}")
        return self._places

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return randn(self.rows, *shape, dtype=dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return rand(self.rows, *shape, dtype=dtype)

    def per_sequence(self, count: int, length: int) -> Tensor:
        """U[0, 1) float64 (count, length), a function of each sequence's place alone.

        The same on every kind of device: splitmix64 of a counter. Every share must call it equally often.
        """
        return self._spread(self.moved(torch.tensor(self.rows.places(count))), length)

    def points_per_sequence(self, count: int, length: int) -> Tensor:
        """What `per_sequence` gives, on the CPU, as `points` of `stratified`."""
        return self._spread(torch.tensor(self.rows.places(count)), length)

    def _spread(self, places: Tensor, length: int) -> Tensor:
        base = mix_seed(self._seed, self.step, _PER_SEQUENCE, self._calls)
        self._calls += 1
        column = torch.arange(1, length + 1, device=places.device)
        spread = _scramble(_scramble(places[:, None] * _GAMMA + base) + column * _GAMMA)
        return _shifted(spread, 11).double() * 2.0**-53

    def shared_uniform(self) -> float:
        """One uniform number that every share of the global batch draws alike."""
        return torch.rand((), generator=self.shared, dtype=torch.float64).item()

    def stratified(self, count: int) -> Tensor:
        """This share's part of a stratified U[0, 1) sample over the global batch, float64 (count,).

        Where that batch has no end, as in validation, over each 64 places. Every share must call it equally often.
        """
        return self.moved(self.points(count))

    def points(self, count: int) -> Tensor:
        """What `stratified` gives, still on the CPU, where the numbers can be read without waiting for the device."""
        places, total = self.places(count), self._size(count)
        if total is not None:
            points = _strata(total, self.shared)[list(places)]
        else:
            base = int(torch.randint(1 << 62, (), generator=self.shared))
            groups = {
                group: _strata(GROUP, torch.Generator().manual_seed(mix_seed(base, group)))
                for group in {place // GROUP for place in places}
            }
            points = torch.tensor([float(groups[place // GROUP][place % GROUP]) for place in places], dtype=torch.float64)
        return points

    def split(self, count: int, fraction: float, fill: bool = False) -> Split:
        """`count` sequences in two parts: the first is this fraction of the global batch, rounded up or down at random.

        Both are spread evenly over the places, so that every share has its share of each.

        Args:
            fill: put a sequence that does not count in a part that has some on other shares, but none here.
        """
        places, total = self.places(count), self._size(count)
        whole = GROUP if total is None else total
        first = min(whole, int(fraction * whole + self.shared_uniform()))
        before = [place * first // whole for place in places]  # of the first part, ahead of each place
        chosen = [(place + 1) * first // whole > done for place, done in zip(places, before, strict=True)]
        inside = before, [place - done for place, done in zip(places, before, strict=True)]
        parts, order, counted = [], [], []
        for which, size in ((True, first), (False, whole - first)):
            rows = [row for row in range(count) if chosen[row] is which]
            counted += [1.0] * len(rows)
            if fill and size and not rows:
                rows, counted = [0], [*counted, 0.0]
            if total is None:
                here, size_here = [places[row] for row in rows], None
            else:
                here, size_here = [min(inside[not which][row], size - 1) for row in rows], size
            draws = Draws(self._seed, self.step, self.share, self.num_shares, self.device, here, size_here)
            draws.shared, draws.local, draws.rows = self.shared, self.local, self.rows.part(rows, count)
            parts.append(Part(slice(len(order), len(order) + len(rows)), draws, size > 0))
            order += rows
        back = [0] * count
        for row, (sequence, counts) in enumerate(zip(order, counted, strict=True)):
            if counts:
                back[sequence] = row
        moved = [self.moved(torch.tensor(values)) for values in (order, counted, back)]
        return Split(*moved, (parts[0], parts[1]))

    def _size(self, count: int) -> int | None:
        """Sequences of the global batch; None where it has no end."""
        return count * self.num_shares if self._places is None else self._total

    def moved(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU where these numbers are drawn, without waiting for it."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # from pageable memory the copy would wait for all work queued on the device
        return tensor.to(self.device, non_blocking=True)


GROUP = 64  # places that are stratified together where there is no last one


def _strata(total: int, generator: torch.Generator) -> Tensor:
    """One point in each of `total` equal parts of [0, 1), in random order, float64."""
    jitter = torch.rand(total, generator=generator, dtype=torch.float64)
    points = (torch.arange(total, dtype=torch.float64) + jitter) / total
    return points[torch.randperm(total, generator=generator)]
