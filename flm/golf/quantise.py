"""Weights in few bits: one scale per output row, symmetric, rounded to the nearest.

Two ways. Of the published one what a weight is decides its bits: a matrix of a block 6 (or 5), any other large one 8 (tables,
heads, modules beside the blocks); a row's largest weight decides its scale. Of the other a row's root mean square decides its
scale, and one step for all rows how large the file becomes: what costs bytes is the entropy of the codes, and under it the
largest weight of a row says nothing about how fine its others should be. A small weight is kept in float16 either way. Codes
lie in int8 whatever their bits: an entropy coder that comes after finds the rest.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from flm.golf.error_feedback import rounded_with_feedback
from flm.golf.numbering import block_of

SMALL = 65_536  # elements
KEPT = 16
BLOCK_BITS, BLOCK_BITS_FEWER, TABLE_BITS = 6, 5, 8
TABLE_STEPS = 0.5  # of the step of others: tables and heads are read at each position
TABLE_PERCENTILE = 0.9999984  # of a row of 8 bits: the few largest weights are clipped
_QUANTILE_ELEMENTS = 1 << 22  # torch.quantile sorts a copy, and refuses more than 2^24


@dataclass(frozen=True)
class Quantised:
    """A weight as codes * scales, row by row.

    Attributes:
        codes: int8, of the weight's shape.
        scales: (rows,) float16, rows being the first dimension; 0 for a row of zeros.
    """

    codes: Tensor
    scales: Tensor

    def weight(self) -> Tensor:
        """float32, of the weight's shape."""
        rows = self.codes.reshape(len(self.scales), -1).float() * self.scales.float()[:, None]
        return rows.reshape(self.codes.shape)

    def bytes(self) -> np.ndarray:
        """The codes, flat, as uint8."""
        return self.codes.contiguous().numpy().view("uint8").ravel()


def quantise(weight: Tensor, bits: int, percentile: float = 1.0, floor: bool = False) -> Quantised:
    """Codes in [-2^(bits-1), 2^(bits-1) - 1].

    Args:
        weight: of at least two dimensions; the first is the output's.
        bits: 2 ... 8.
        percentile: in (0, 1], of |w| in a row: what lies beyond is clipped to it.
        floor: no scale below 1 / (2^(bits-1) - 1), so that all rows whose largest weight is below 1 share one step.
            Published so, and coarse unless weights are large: N(0, 0.05) in 6 bits comes back 18.6 % off. Off by default.

    Raises:
        ValueError: a weight is not finite, or too large for a float16 scale.
    """
    largest_code = 2 ** (bits - 1) - 1
    rows = weight.detach().reshape(len(weight), -1).float()
    bound = rows.abs().amax(1) if percentile == 1 else _row_quantiles(rows, percentile)
    scales = bound / largest_code
    if floor:
        scales = scales.clamp_min(1 / largest_code)
    scales = scales.half()
    if not torch.isfinite(rows).all() or not torch.isfinite(scales).all():
        raise ValueError(_NO_NUMBERS)
    # by the scale as stored, so that its own rounding costs nothing but a clipped half step at the row's largest weight
    steps = scales.float()[:, None]
    codes = torch.where(steps > 0, rows / steps, 0.0).round_().clamp_(-largest_code - 1, largest_code)
    return Quantised(codes.to(torch.int8).reshape(weight.shape), scales)


def quantise_by_step(weight: Tensor, step: float, moments: Tensor | None = None) -> Quantised:
    """Codes of at most 127 in absolute value; a step is so many root mean squares of its row, or what the row's largest needs.

    The error is that of rounding, step / sqrt(12) of the row's norm, whatever the law of its weights; of Gaussian ones the
    codes have an entropy of 2.05 - log2(step) bits.

    Args:
        moments: (I, I), E[x x^T] of the inputs of a matrix (O, I): it is then rounded with `rounded_with_feedback`. None: each
            weight to the nearest.

    Raises:
        ValueError: a weight is not finite, or too large for a float16 scale.
    """
    rows = weight.detach().reshape(len(weight), -1).float()
    scales = torch.maximum(rows.square().mean(1).sqrt() * step, rows.abs().amax(1) / 127).half()
    if not torch.isfinite(rows).all() or not torch.isfinite(scales).all():
        raise ValueError(_NO_NUMBERS)
    steps = scales.float()
    if moments is None:
        codes = torch.where(steps[:, None] > 0, rows / steps[:, None], 0.0).round_().clamp_(-127, 127)
    else:
        codes = rounded_with_feedback(rows, steps, moments)
    return Quantised(codes.to(torch.int8).reshape(weight.shape), scales)


_NO_NUMBERS = "holds weights that are no numbers, or too large to quantise"


def _row_quantiles(rows: Tensor, percentile: float) -> Tensor:
    chunk = max(1, _QUANTILE_ELEMENTS // rows.shape[1])
    return torch.cat([part.abs().quantile(percentile, dim=1) for part in rows.split(chunk)])


@dataclass(frozen=True)
class Plan:
    """How many bits each weight gets.

    Attributes:
        bits: by name: 16 (kept, as float16), 8, 6 or 5.
        fewer: numbers of the blocks whose matrices have 5.
        step: of `quantise_by_step`, in place of 8, 6 and 5 bits; None: as those say.
    """

    bits: Mapping[str, int] = field(hash=False)
    fewer: tuple[int, ...] = ()
    step: float | None = None

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], fewer: Iterable[int] = (), small: int = SMALL) -> "Plan":
        """From the place and size of each weight.

        Args:
            fewer: blocks whose matrices get 5 bits in place of 6.
            small: elements up to which a weight is kept in float16.
        """
        fewer = tuple(fewer)
        return cls({name: _bits(name, weight, fewer, small) for name, weight in weights.items()}, fewer)

    def rounded(self, name: str, weight: Tensor, floor: bool = False, moments: Tensor | None = None) -> Quantised | Tensor:
        """A weight in its bits; one that is kept as float16.

        floor: see `quantise`; moments: see `quantise_by_step`. Raises ValueError as these do.
        """
        bits = self.bits[name]
        if bits == KEPT:
            half = weight.half()
            if not torch.isfinite(half).all():
                raise ValueError("holds weights that are no numbers, or too large for float16")
            return half
        if self.step is not None:
            return quantise_by_step(weight, self.step * (TABLE_STEPS if bits == TABLE_BITS else 1), moments)
        return quantise(weight, bits, TABLE_PERCENTILE if bits == TABLE_BITS else 1.0, floor)

    def elements(self, weights: Mapping[str, Tensor]) -> dict[str, int]:
        """Number of weights by bits, most bits first; of those that a step rounds, by "step"."""
        found: dict[str, int] = {}
        for name, bits in sorted(self.bits.items(), key=lambda item: -item[1]):
            key = str(bits) if self.step is None or bits == KEPT else "step"
            found[key] = found.get(key, 0) + weights[name].numel()
        return found


def _bits(name: str, weight: Tensor, fewer: tuple[int, ...], small: int) -> int:
    if weight.numel() <= small or weight.ndim < 2:
        return KEPT
    block = block_of(name)
    if block is None:
        return TABLE_BITS
    return BLOCK_BITS_FEWER if block in fewer else BLOCK_BITS


def from_the_middle(count: int) -> list[int]:
    """Numbers 0 .. count-1 from the middle outward: 5, 6, 4, 7, 3, ... of 11.

    The middle blocks change the state least, those at both ends most.
    """
    middle = count // 2
    return sorted(range(count), key=lambda block: (abs(block - middle), -block))


def num_blocks(names: Iterable[str]) -> int:
    """One more than the highest number of a block among the names; 0 where there is none."""
    return max((block for name in names if (block := block_of(name)) is not None), default=-1) + 1
