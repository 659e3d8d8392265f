"""The random streams of one micro-batch.

All random numbers of a training step are functions of the seed, the step and a sequence's place in the global batch. In
validation they are functions of the seed and the sequence's number in its split. So a sequence gets the same times and noise
however the batch is cut into micro-batches and processes, and a resumed run needs no saved generator state.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = (1 << 63) - 1
_PER_SEQUENCE = 7  # number of a stream of the seed; 0 to 2 are in `Draws`, others in training
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
    """Logical right shift: zeros come in from the left. int64 has only the arithmetic one."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _scramble(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64 of any shape."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


class Rows:
    """A source of random numbers for the sequences of a batch. Those of a sequence depend on its place alone.

    `randn`, `rand` and `randint` draw from it, row by row: the first axis of a tensor is that of the sequences. All shares of
    a global batch must draw equally often.

    Args:
        seed: of all rows.
        device: where the tensors are drawn.
        places: gives the places of `count` rows in the global batch.
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
        """An independent source for some of `count` rows, given by their indices."""
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
    """Random whole numbers in [0, 2^53), a function of int64 keys, which broadcast."""
    found = torch.zeros((), dtype=torch.long, device=keys[0].device)
    for key in keys:
        found = _scramble(found + key * _GAMMA + _FIRST)
    return _shifted(found, 11)


@dataclass(frozen=True)
class Part:
    """The sequences of a micro-batch that belong to one part of the global batch.

    Attributes:
        rows: their slice of `Split.order`.
        draws: their random numbers.
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
        counted: (n,) float, 0 for a sequence that only fills an empty part, else 1.
        back: (B,) int64, the row at which each sequence counts.
        parts: the two parts, in order.
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
        places: of the sequences, if they do not follow from the share; None: they do.
        total: sequences of the global batch; None: as many as all shares hold, or with `places`, unlimited.

    Attributes:
        step: as given, for schedules over training.
        rows: source of numbers for each sequence (noise, categorical draws), see `Rows`.
        local: generator of this share alone, for numbers that belong to no sequence.
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
        """The places of the `count` sequences in the global batch."""
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
        """As `per_sequence`, but on the CPU, where the numbers can be read without waiting for the device."""
        return self._spread(torch.tensor(self.rows.places(count)), length)

    def _spread(self, places: Tensor, length: int) -> Tensor:
        base = mix_seed(self._seed, self.step, _PER_SEQUENCE, self._calls)
        self._calls += 1
        column = torch.arange(1, length + 1, device=places.device)
        spread = _scramble(_scramble(places[:, None] * _GAMMA + base) + column * _GAMMA)
        return _shifted(spread, 11).double() * 2.0**-53

    def shared_uniform(self) -> float:
        """A uniform number, the same on every share of the global batch."""
        return torch.rand((), generator=self.shared, dtype=torch.float64).item()

    def stratified(self, count: int) -> Tensor:
        """This share's part of a stratified U[0, 1) sample over the global batch, float64 (count,).

        If the batch is unlimited, as in validation, each 64 places are stratified. Every share must call it equally often.
        """
        return self.moved(self.points(count))

    def points(self, count: int) -> Tensor:
        """As `stratified`, but on the CPU, where the numbers can be read without waiting for the device."""
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

        Both parts are spread evenly over the places, so that every share gets its portion of each.

        Args:
            fill: if a part is empty here but not on other shares, put a sequence in it that does not count.
        """
        places, total = self.places(count), self._size(count)
        whole = GROUP if total is None else total
        first = min(whole, int(fraction * whole + self.shared_uniform()))
        before = [place * first // whole for place in places]  # members of the first part before each place
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
        """Sequences of the global batch; None: unlimited."""
        return count * self.num_shares if self._places is None else self._total

    def moved(self, tensor: Tensor) -> Tensor:
        """A CPU tensor on the device of these draws, copied without waiting."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # from pageable memory the copy would wait for all work queued on the device
        return tensor.to(self.device, non_blocking=True)


GROUP = 64  # places that are stratified together in an unlimited batch


def _strata(total: int, generator: torch.Generator) -> Tensor:
    """One point in each of `total` equal parts of [0, 1), in random order, float64."""
    jitter = torch.rand(total, generator=generator, dtype=torch.float64)
    points = (torch.arange(total, dtype=torch.float64) + jitter) / total
    return points[torch.randperm(total, generator=generator)]
