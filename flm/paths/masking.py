"""Which positions of a sequence turn to noise: of a given number, each by itself, or whole windows, and in which part.

The last two, with a curriculum over training, are the three strategies of CoDA (arXiv 2510.03270), drawn anew for every
sequence: S1 leaves a prefix as it is, S2 cuts the end off, S3 hides windows of neighbouring positions.
B batch, L length. Uniform numbers are float64 in [0, 1).
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
    """k of each sequence's n maskable positions (B, L) bool in random places, k = 1 .. n as u (B,) in [0, 1) says.

    Returns:
        Masks (B, L) bool, and n / k (B,) float64, by which their sum stands for that of all; 0 where n is.
    """
    key = rand(source, *maskable.shape, dtype=torch.float64)
    masks, scale, _ = masks_by_key(maskable, u, key)
    return masks, scale


def masks_by_key(maskable: Tensor, u: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `random_masks`, the places those with the smallest uniform keys (B, L).

    Returns:
        Masks, n / k, and a kappa (B,) float64 at which that many masks stand. With u uniform too, kappa and masks together are
        distributed as if kappa came first, with density proportional to P(some mask) / (1 - kappa), and then each mask by
        itself: given k, 1 - kappa is Beta(k, n - k + 1), the k-th smallest of n uniform numbers, and ranks do not depend on
        the values ranked. 1 where n is 0.
    """
    n = maskable.sum(1)
    k = torch.minimum((u * n).long() + 1, n)
    order = key.masked_fill(~maskable, 2.0).argsort(1)
    threshold = key.gather(1, order.gather(1, (k - 1).clamp_min(0)[:, None]))[:, 0]
    masks = order.argsort(1) < k[:, None]
    return masks, n / k.clamp_min(1).double(), torch.where(n > 0, 1 - threshold, torch.ones_like(threshold))


def drawn_masks(points: Tensor, length: int) -> int:
    """How many masks `random_masks` makes, at most, of sequences of `length` by these u (B,), `points` on the CPU; fewer where
    a sequence has padding."""
    return sum(min(int(u * length) + 1, length) for u in points.tolist())


def first_masks(masks: Tensor, most: int) -> Tensor:
    """Places (most,) in the flattened masks (B, L): all masks, if there are no more, in order, then others."""
    return masks.flatten().byte().argsort(descending=True, stable=True)[:most]


class Places:
    """Some positions of a batch in one row, where losses are asked for, whose number no device is asked for.

    Args:
        positions: (B, L) bool.
        most: so many there are at most. The row has that length; where there are fewer, others follow, whose weight must be 0.
    """

    def __init__(self, positions: Tensor, most: int):
        self.positions = positions
        self._rows = None if most >= positions.numel() else first_masks(positions, most)

    def of(self, values: Tensor) -> Tensor:
        """(1, n, ...) of (B, L, ...)."""
        flat = values.flatten(0, 1)
        return (flat if self._rows is None else flat.index_select(0, self._rows))[None]

    def weight(self, values: Tensor) -> Tensor:
        """The same of a weight (B, L), 0 but at the positions."""
        return self.of(values * self.positions)

    def spread(self, found: Tensor) -> Tensor:
        """Values (1, n) where they belong (B, L), 0 elsewhere."""
        if self._rows is not None:
            found = found.new_zeros(self.positions.numel()).index_copy(0, self._rows, found[0])
        return torch.where(self.positions, found.view(self.positions.shape), 0.0)


def most_masks(sigma: Tensor, length: int) -> int:
    """What the masks of sequences of `length`, each with probability sigma (B,) on the CPU, exceed once in 10^14 batches.

    By Bernstein's inequality: eight standard deviations and 22 above the mean; never more than there are positions.
    """
    mean, variance = (length * sum(values.tolist()) for values in (sigma, sigma * (1 - sigma)))
    return min(math.ceil(mean + 8 * math.sqrt(variance) + 22), len(sigma) * length)


def window_masks(maskable: Tensor, sigma: Tensor, size: int, u: Tensor) -> Tensor:
    """Windows of `size` neighbours (B, L) bool, all of them maskable (B, L), that start where u (B, L) says so.

    A window starts with probability 1 - (1 - sigma)^(1 / size), sigma (B,), so that a position that `size` windows may cover
    is hidden with probability sigma. Next to what is not maskable, and at both ends, fewer may, and it is hidden less often:
    a position alone never.
    """
    fits = _trailing_count(maskable, size).roll(1 - size, 1) == size  # at a window's first position
    fits[:, max(0, maskable.shape[1] - size + 1) :] = False
    return _trailing_count(fits & (u < window_chance(sigma, size)[:, None]), size) > 0


def window_chance(sigma: Tensor, size: int) -> Tensor:
    """That a window starts at a position, 1 - (1 - sigma)^(1 / size); of the shape of sigma."""
    return -torch.expm1(torch.log1p(-sigma) / size)


def _trailing_count(flags: Tensor, size: int) -> Tensor:
    """How many of the last `size` positions, this one included, are flagged: (B, L)."""
    total = flags.long().cumsum(1)
    before = torch.zeros_like(total)
    before[:, size:] = total[:, :-size]
    return total - before


@dataclass(frozen=True)
class Strategies:
    """How likely each is for a sequence, at one moment of training.

    Attributes:
        prefix: S1.
        suffix: S2, of a sequence without S1.
        windows: S3, whatever else.
        window_sizes: of which one is drawn for the whole batch.
    """

    prefix: float
    suffix: float
    windows: float
    window_sizes: tuple[int, ...]

    def part(self, length: int, u: Tensor) -> tuple[Tensor, Tensor]:
        """The part of each sequence that is left to corrupt, for uniform numbers u (B, 4).

        Returns:
            How many positions stay as they are at its start, and how many there are at all; (B,) each, in [0, L].
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
    """Strategies over training. A module, as schedules are, so that a config may name it; no parameters, and no state: what
    holds follows from the optimiser step.

    Args:
        steps: optimiser steps that it lasts; what holds at its end holds from there on.
        prefix, suffix, windows: probabilities, see `Strategies`; a number, or one for each of equally long phases.
        window_sizes: at least 2 each; a list for each phase, or one list for all.
        linear: whether probabilities go from one number of a list to the next in a straight line, rather than by phases.
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
        """What holds at an optimiser step."""
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
