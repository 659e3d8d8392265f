"""Rounding of weights to few bits, with one scale for each output row.

There are two ways. In the published one the place of a weight sets its bits: 6 (or 5) for a matrix in a block, 8 for any other
large one (tables, heads, modules outside the blocks). The scale of a row follows from its largest weight.

In the other way the scale of a row is its root mean square times a step, the same step for all rows. The step sets the size of
the file, because an entropy-coded file is about as large as the entropy of its codes. The largest weight of a row hardly
changes that entropy, so it need not set the scale.

In both ways small weights are kept in float16. Codes are int8 even if they have fewer bits, and are compressed later.
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
TABLE_STEPS = 0.5  # factor of the step for tables and heads, which are read at every position
TABLE_PERCENTILE = 0.9999984  # for rows of 8 bits, where the few largest weights are clipped
_QUANTILE_ELEMENTS = 1 << 22  # torch.quantile sorts a copy, and refuses more than 2^24


@dataclass(frozen=True)
class Quantised:
    """A weight as codes * scales, row by row. The first dimension of the weight counts its rows.

    Attributes:
        codes: int8, in the weight's shape.
        scales: (rows,), float16; 0 for a row of zeros.
    """

    codes: Tensor
    scales: Tensor

    def weight(self) -> Tensor:
        """The rounded weight, float32."""
        rows = self.codes.reshape(len(self.scales), -1).float() * self.scales.float()[:, None]
        return rows.reshape(self.codes.shape)

    def bytes(self) -> np.ndarray:
        """The codes, flat, as uint8."""
        return self.codes.contiguous().numpy().view("uint8").ravel()


def quantise(weight: Tensor, bits: int, percentile: float = 1.0, floor: bool = False) -> Quantised:
    """Rounds to codes in [-2^(bits-1), 2^(bits-1) - 1], with scales from the largest weight of each row.

    Args:
        weight: of at least two dimensions; the first is the output's.
        bits: 2 ... 8.
        percentile: in (0, 1]; larger |w| than this quantile of a row's |w| are clipped.
        floor: keeps scales from falling below 1 / (2^(bits-1) - 1), as published. All rows whose largest weight is below 1
            then have the same scale. This is coarse unless weights are large: N(0, 0.05) in 6 bits has an error of 18.6 %.

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
    # Dividing by the scale as stored in float16 avoids an error from rounding it, except for a half step that may be clipped
    # off the largest weight of a row.
    steps = scales.float()[:, None]
    codes = torch.where(steps > 0, rows / steps, 0.0).round_().clamp_(-largest_code - 1, largest_code)
    return Quantised(codes.to(torch.int8).reshape(weight.shape), scales)


def quantise_by_step(weight: Tensor, step: float, moments: Tensor | None = None) -> Quantised:
    """Rounds to codes of at most 127 in absolute value, with scales from the root mean square of each row.

    The relative error of a row is step / sqrt(12), for any distribution of its weights that is wide against the step. The
    codes of Gaussian weights have an entropy of 2.05 - log2(step) bits.

    Args:
        step: the scale of a row in its root mean squares. A row whose largest weight needs a larger scale gets that.
        moments: (I, I), E[x x^T] of the inputs of a matrix (O, I), which is then rounded by `rounded_with_feedback`. None:
            each weight is rounded to the nearest code.

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
    """How each weight is rounded.

    Attributes:
        bits: by name: 16 (kept as float16), 8, 6 or 5.
        fewer: numbers of the blocks whose matrices have 5 bits.
        step: rounds weights of 8, 6 and 5 bits by `quantise_by_step` instead, with half the step for those of 8; None: by
            `quantise`.
    """

    bits: Mapping[str, int] = field(hash=False)
    fewer: tuple[int, ...] = ()
    step: float | None = None

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], fewer: Iterable[int] = (), small: int = SMALL) -> "Plan":
        """The plan for weights by name, from the place and size of each.

        Args:
            fewer: blocks whose matrices get 5 bits instead of 6.
            small: a weight of at most so many elements, or with fewer than two dimensions, is kept in float16.
        """
        fewer = tuple(fewer)
        return cls({name: _bits(name, weight, fewer, small) for name, weight in weights.items()}, fewer)

    def rounded(self, name: str, weight: Tensor, floor: bool = False, moments: Tensor | None = None) -> Quantised | Tensor:
        """The weight of this name, rounded; float16 if it is kept.

        Args:
            floor: see `quantise`.
            moments: see `quantise_by_step`.

        Raises:
            ValueError: a weight is not finite, or too large.
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
        """Number of elements by bits, most bits first. Those that are rounded by a step are counted under "step"."""
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
    """The numbers 0 .. count-1 from the middle outward: 5, 6, 4, 7, 3, ... for a count of 11.

    The middle blocks change the hidden state least, and those at both ends most.
    """
    middle = count // 2
    return sorted(range(count), key=lambda block: (abs(block - middle), -block))


def num_blocks(names: Iterable[str]) -> int:
    """One more than the highest block number among the names; 0 if no name is in a block."""
    return max((block for name in names if (block := block_of(name)) is not None), default=-1) + 1
