"""Which positions of a sequence become noise: a given number of them, each by itself, or whole windows; and in which part.

`MaskingCurriculum` has the three strategies of CoDA (arXiv 2510.03270), drawn anew for every sequence: S1 keeps a prefix, S2
cuts the end off, S3 masks windows of neighbouring positions. B batch, L length. Uniform numbers are float64 in [0, 1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, MinLen
from torch import Tensor, nn

from flm.draws import Source, rand
from flm.ranges import Count, Share


def random_masks(maskable: Tensor, u: Tensor, source: Source) -> tuple[Tensor, Tensor]:
    """Masks k of each sequence's n maskable positions (B, L) bool, in random places; k = 1 .. n follows from u (B,) in [0, 1).

    Returns:
        Masks (B, L) bool, and n / k (B,) float64, by which a sum over masks estimates that over all n; 0 where n is 0.
    """
    key = rand(source, *maskable.shape, dtype=torch.float64)
    masks, scale, _ = masks_by_key(maskable, u, key)
    return masks, scale


def masks_by_key(maskable: Tensor, u: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `random_masks`, at the places with the k smallest of uniform keys (B, L).

    Returns:
        Masks, n / k, and a kappa (B,) float64 to go with the masks: 1 minus the k-th smallest key; 1 where n is 0. With u
        uniform, kappa and masks together are distributed as if kappa were drawn first, with density proportional to
        P(some mask) / (1 - kappa), and then each mask by itself. For given k, 1 - kappa is then Beta(k, n - k + 1), like the
        k-th smallest of n uniform numbers, and which places have the smallest keys does not depend on the keys' values.
    """
    n = maskable.sum(1)
    k = torch.minimum((u * n).long() + 1, n)
    order = key.masked_fill(~maskable, 2.0).argsort(1)
    threshold = key.gather(1, order.gather(1, (k - 1).clamp_min(0)[:, None]))[:, 0]
    masks = order.argsort(1) < k[:, None]
    return masks, n / k.clamp_min(1).double(), torch.where(n > 0, 1 - threshold, torch.ones_like(threshold))


def drawn_masks(points: Tensor, length: int) -> int:
    """The most masks that `random_masks` makes in sequences of `length` for u = points (B,), on the CPU.

    There are fewer where a sequence has padding.
    """
    return sum(min(int(u * length) + 1, length) for u in points.tolist())


def first_masks(masks: Tensor, most: int) -> Tensor:
    """Indices (most,) into the flattened masks (B, L): the masks in order, then other positions if `most` is larger."""
    return masks.flatten().byte().argsort(descending=True, stable=True)[:most]


class Places:
    """Gathers the positions of a batch where a loss is computed into one row, without waiting for the device to count them.

    Args:
        positions: (B, L) bool.
        most: the most there can be, which is the length n of the row. Other positions fill it up; their weight must be 0.
    """

    def __init__(self, positions: Tensor, most: int):
        self.positions = positions
        self._rows = None if most >= positions.numel() else first_masks(positions, most)

    def of(self, values: Tensor) -> Tensor:
        """Values (B, L, ...) at the positions, (1, n, ...)."""
        flat = values.flatten(0, 1)
        return (flat if self._rows is None else flat.index_select(0, self._rows))[None]

    def weight(self, values: Tensor) -> Tensor:
        """A weight (B, L) at the positions, (1, n), 0 where others fill the row up."""
        return self.of(values * self.positions)

    def spread(self, found: Tensor) -> Tensor:
        """The inverse of `of` for values (1, n): (B, L), 0 off the positions."""
        if self._rows is not None:
            found = found.new_zeros(self.positions.numel()).index_copy(0, self._rows, found[0])
        return torch.where(self.positions, found.view(self.positions.shape), 0.0)


def most_masks(sigma: Tensor, length: int) -> int:
    """A limit that independent masks, each with probability sigma (B,) on the CPU, exceed once in 10^14 batches.

    By Bernstein's inequality: eight standard deviations and 22 above the mean, but no more than there are positions.
    """
    mean, variance = (length * sum(values.tolist()) for values in (sigma, sigma * (1 - sigma)))
    return min(math.ceil(mean + 8 * math.sqrt(variance) + 22), len(sigma) * length)


def window_masks(maskable: Tensor, sigma: Tensor, size: int, u: Tensor) -> Tensor:
    """Masks (B, L) bool of whole windows of `size` maskable neighbours, drawn by uniform numbers u (B, L).

    A window starts with probability 1 - (1 - sigma)^(1 / size), sigma (B,). So a position that `size` windows may cover is
    masked with probability sigma. At both ends, and beside positions that are not maskable, fewer windows may cover it, so it
    is masked less often; a lone maskable position never is.
    """
    fits = _trailing_count(maskable, size).roll(1 - size, 1) == size  # at a window's first position
    fits[:, max(0, maskable.shape[1] - size + 1) :] = False
    return _trailing_count(fits & (u < window_chance(sigma, size)[:, None]), size) > 0


def window_chance(sigma: Tensor, size: int) -> Tensor:
    """The probability 1 - (1 - sigma)^(1 / size) that a window starts at a position, of the shape of sigma."""
    return -torch.expm1(torch.log1p(-sigma) / size)


def _trailing_count(flags: Tensor, size: int) -> Tensor:
    """The number of flags (B, L) among the last `size` positions, this one included."""
    total = flags.long().cumsum(1)
    before = torch.zeros_like(total)
    before[:, size:] = total[:, :-size]
    return total - before


@dataclass(frozen=True)
class Strategies:
    """The probability of each strategy for a sequence, at one moment of training.

    Attributes:
        prefix: of S1.
        suffix: of S2 for a sequence without S1.
        windows: of S3, independent of S1 and S2.
        window_sizes: one of them is drawn for the whole batch.
    """

    prefix: float
    suffix: float
    windows: float
    window_sizes: tuple[int, ...]

    def part(self, length: int, u: Tensor) -> tuple[Tensor, Tensor]:
        """The part of each sequence that may be corrupted, for uniform numbers u (B, 4).

        Returns:
            Its start and its end, (B,) each, in [0, L].
        """
        at_least_one = 1 + (u[:, 1::2] * (length - 1)).long()  # in 1 .. L - 1
        with_prefix = (u[:, 0] < self.prefix) & (length > 1)
        cut = ~with_prefix & (u[:, 2] < self.suffix) & (length > 1)
        start = torch.where(with_prefix, at_least_one[:, 0], 0)
        return start, torch.where(cut, at_least_one[:, 1], length)

    def window_size(self, u: float) -> int:
        return self.window_sizes[int(u * len(self.window_sizes))]


Chances = Share | Annotated[Sequence[Share], MinLen(1)]
WindowSizes = Annotated[Sequence[Annotated[int, Ge(2)]], MinLen(1)]


class MaskingCurriculum(nn.Module):
    """Strategies over training, a function of the optimiser step. A module without parameters, so that a config may name it.

    Args:
        steps: optimiser steps that it lasts; afterwards its last values stay.
        prefix, suffix, windows: probabilities, see `Strategies`: one number, or a list for phases of equal length.
        window_sizes: at least 2 each; one list for all phases, or a list for each.
        linear: interpolate linearly between the numbers of a list, instead of phases.
    """

    def __init__(
        self,
        steps: Count,
        prefix: Chances = 0.0,
        suffix: Chances = 0.0,
        windows: Chances = 0.0,
        window_sizes: WindowSizes | Annotated[Sequence[WindowSizes], MinLen(1)] = (2, 4, 8),
        linear: bool = False,
    ):
        super().__init__()
        self.steps, self.linear = steps, linear
        self.chances = {"prefix": _listed(prefix), "suffix": _listed(suffix), "windows": _listed(windows)}
        sizes = list(window_sizes)
        self.window_sizes = [tuple(phase) for phase in ([sizes] if isinstance(sizes[0], int) else sizes)]

    def at(self, step: int) -> Strategies:
        """The strategies at an optimiser step."""
        progress = min(1.0, max(0, step) / self.steps)
        chances = {name: self._value(values, progress) for name, values in self.chances.items()}
        return Strategies(**chances, window_sizes=_phase(self.window_sizes, progress))

    def _value(self, values: list[float], progress: float) -> float:
        if not self.linear:
            return _phase(values, progress)
        place = progress * (len(values) - 1)
        low = min(int(place), max(0, len(values) - 2))
        high = min(low + 1, len(values) - 1)
        return values[low] + (place - low) * (values[high] - values[low])


def _listed(value: float | Sequence[float]) -> list[float]:
    return [float(x) for x in value] if isinstance(value, Sequence) else [float(value)]


def _phase(values: Sequence[Any], progress: float) -> Any:
    return values[min(int(progress * len(values)), len(values) - 1)]
