"""The random streams of one micro-batch.

Everything random in a training step is a function of (seed, step, share), where a share is one micro-batch of the global
batch: rank r with A accumulation steps holds shares r*A .. r*A + A-1 of world_size*A. So a resumed run needs no saved
generator state, and one process with two accumulation steps draws what two processes draw.
"""

import torch
from torch import Tensor

_MASK = (1 << 63) - 1
_PER_SEQUENCE = 7  # stream of the seed, beside 0 and 1 below and those of training
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


class Draws:
    """Random numbers for one micro-batch.

    Args:
        seed: the run's seed.
        step: optimiser step (or validation batch index) the numbers belong to.
        share: index of this micro-batch in the global batch, in [0, num_shares).
        num_shares: micro-batches in the global batch.
        device: where the tensors are drawn.

    Attributes:
        step: as given, for what changes in the course of training.
        local: generator of this share alone (noise, categorical draws).
        shared: generator in the same state on every share (stratified times); always on the CPU, so that ranks on
            different devices agree.
    """

    def __init__(
        self,
        seed: int,
        step: int = 0,
        share: int = 0,
        num_shares: int = 1,
        device: torch.device | str = "cpu",
    ):
        if not 0 <= share < num_shares:
            raise ValueError(f"share {share} is not in [0, {num_shares})")
        self.device = torch.device(device)
        self._seed, self._calls = seed, 0
        self.step, self.share, self.num_shares = step, share, num_shares
        self.shared = torch.Generator("cpu").manual_seed(mix_seed(seed, step, 0))
        self.local = torch.Generator(self.device).manual_seed(mix_seed(seed, step, 1, share))

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=self.local, device=self.device, dtype=dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(*shape, generator=self.local, device=self.device, dtype=dtype)

    def per_sequence(self, count: int, length: int) -> Tensor:
        """U[0, 1) float64 (count, length), a function of each sequence's place in the global batch, however that is split.

        The same on every kind of device: splitmix64 of a counter. Every share must call it with the same counts in the same
        order.
        """
        base = mix_seed(self._seed, self.step, _PER_SEQUENCE, self._calls)
        self._calls += 1
        first = self.share * count
        row = torch.arange(first, first + count, device=self.device)[:, None]
        column = torch.arange(1, length + 1, device=self.device)
        spread = _scramble(_scramble(row * _GAMMA + base) + column * _GAMMA)
        return _shifted(spread, 11).double() * 2.0**-53

    def shared_uniform(self) -> float:
        """One uniform number that every share of the global batch draws alike."""
        return torch.rand((), generator=self.shared, dtype=torch.float64).item()

    def seed(self) -> int:
        """The seed of a generator for this share alone, without waiting for the device.

        Every share must call it equally often.
        """
        return mix_seed(int(torch.randint(1 << 62, (), generator=self.shared)), self.share)

    def stratified(self, count: int) -> Tensor:
        """This share's part of a stratified U[0, 1) sample over the global batch, float64 (count,).

        Every share must call it with the same counts in the same order.
        """
        total = count * self.num_shares
        jitter = torch.rand(total, generator=self.shared, dtype=torch.float64)
        points = (torch.arange(total, dtype=torch.float64) + jitter) / total
        order = torch.randperm(total, generator=self.shared)[self.share * count : (self.share + 1) * count]
        mine = points[order]
        if self.device.type == "cuda":
            mine = mine.pin_memory()  # from pageable memory the copy would wait for all work queued on the device
        return mine.to(self.device, non_blocking=True)
