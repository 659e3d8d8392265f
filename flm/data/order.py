"""The order of examples: a function of (seed, position) alone.

The k-th training example of a run is item P(k mod N) of the data set in epoch k // N. P is a permutation given by seed and
epoch. So a run resumes from the number of a step alone, and how a global batch is divided over processes and accumulation
steps does not change its examples.
"""

from collections.abc import Iterator

from torch import Tensor
from torch.utils.data import Dataset, Sampler

from flm.draws import mix_seed

_ROUNDS = 8
_WORD = (1 << 64) - 1
_SPREAD = 0xD6E8FEB86659FD93  # odd, half of its bits set


class Permutation:
    """A seeded bijection of 0 .. count-1: a balanced Feistel network on the next power of four, with cycle walking.

    A Feistel network permutes its whole domain. Applied again until the result is below `count`, it permutes 0 .. count-1
    (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). The domain is less than four times `count`, or 4, so a
    call takes less than four passes on average.
    """

    def __init__(self, count: int, seed: int):
        if count < 1:
            raise ValueError(f"a permutation needs at least one item, not {count}")
        self.count = count
        self._half_bits = max(1, ((count - 1).bit_length() + 1) // 2)
        self._keys = [mix_seed(seed, number) | 1 for number in range(_ROUNDS)]

    def __len__(self) -> int:
        return self.count

    def __call__(self, index: int) -> int:
        """The image of `index`, both in [0, count)."""
        if not 0 <= index < self.count:
            raise IndexError(f"{index} is not in [0, {self.count})")
        place = self._pass(index)
        while place >= self.count:
            place = self._pass(place)
        return place

    def _pass(self, place: int) -> int:
        bits = self._half_bits
        left, right = place >> bits, place & ((1 << bits) - 1)
        for key in self._keys:
            hashed = (right + 1) * key & _WORD
            hashed = (hashed ^ hashed >> 32) * _SPREAD & _WORD
            left, right = right, left ^ hashed >> 64 - bits
        return left << bits | right


class ExampleOrder:
    """Dataset index of the k-th example of a run, for any k >= 0; each epoch has a new order of all N."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed
        self._start_epoch(0)

    def __call__(self, position: int) -> int:
        epoch, place = divmod(position, self.count)
        if epoch != self._epoch:
            self._start_epoch(epoch)
        return self._permutation(place)

    def _start_epoch(self, epoch: int) -> None:
        self._epoch, self._permutation = epoch, Permutation(self.count, mix_seed(self.seed, epoch))


class ShareSampler(Sampler[list[int]]):
    """Batch sampler of one process: the dataset indices of its micro-batches in turn.

    Optimiser step s takes examples [s G, (s + 1) G), G = world_size * accumulation * batch_size. Its micro-batch m on
    rank r is share j = r * accumulation + m and holds examples [s G + j b, s G + (j + 1) b), b = batch_size: the same
    shares that `flm.draws.Draws` numbers.

    Args:
        order: dataset index of each example of the run.
        batch_size: b, examples per micro-batch.
        start: first optimiser step.
        stop: optimiser step to stop before.
        rank: this process, in [0, world_size).
        accumulation: micro-batches per optimiser step and process.
    """

    def __init__(
        self,
        order: ExampleOrder,
        batch_size: int,
        start: int,
        stop: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
    ):
        self.order, self.batch_size, self.start, self.stop = order, batch_size, start, stop
        self.rank, self.world_size, self.accumulation = rank, world_size, accumulation

    def __iter__(self) -> Iterator[list[int]]:
        num_shares = self.world_size * self.accumulation
        for step in range(self.start, self.stop):
            for micro in range(self.accumulation):
                share = step * num_shares + self.rank * self.accumulation + micro
                yield [self.order(k) for k in range(share * self.batch_size, (share + 1) * self.batch_size)]

    def __len__(self) -> int:
        return max(0, self.stop - self.start) * self.accumulation


class EvaluationShare(Dataset[tuple[Tensor, float, int]]):
    """One process's part of a dataset for evaluation: items rank, rank + world_size, ... each with its weight and number.

    All processes hold equally many items, since collective operations would hang otherwise. If the dataset does not divide
    evenly, some end with a repeated item of weight 0. All other weights are 1.

    Args:
        dataset: blocks (L,).
        max_items: use this many items, evenly spaced over the dataset; None: all.
        first: of these, use only this many from the beginning; None: all.
    """

    def __init__(
        self,
        dataset: Dataset[Tensor],
        rank: int = 0,
        world_size: int = 1,
        max_items: int | None = None,
        first: int | None = None,
    ):
        self.dataset, self.rank, self.world_size = dataset, rank, world_size
        available = len(dataset)  # type: ignore[arg-type]
        self._available = available
        self._spread = available if max_items is None else min(max_items, available)
        self.items = self._spread if first is None else min(first, self._spread)

    def __len__(self) -> int:
        return -(-self.items // self.world_size)

    def __getitem__(self, index: int) -> tuple[Tensor, float, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} is not in [0, {len(self)})")
        item = index * self.world_size + self.rank
        weight = float(item < self.items)
        return self.dataset[min(item, self.items - 1) * self._available // self._spread], weight, item
