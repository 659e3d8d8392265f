"""A mean with its standard error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """What a number of independent samples says about a mean.

    Attributes:
        mean: in the unit of the values.
        standard_error: of the mean over samples; None where fewer than two samples carry weight.
        count: samples that carry weight.
    """

    mean: float
    standard_error: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Mean of one value a sample. Raises ValueError where there is none."""
        return cls.ratio(values, [1.0] * len(values))

    @classmethod
    def ratio(cls, sums: Sequence[float], weights: Sequence[float]) -> "Estimate":
        """The pooled mean sum_i s_i / sum_i w_i, where sample i gives the sum s_i of w_i >= 0 values.

        The error is that of the ratio estimator, linearised (delta method): with r the pooled mean and n samples of
        positive weight, var r = n / (n - 1) * sum_i (s_i - r w_i)^2 / (sum_i w_i)^2. With equal weights this is the
        textbook s^2 / n.

        Raises:
            ValueError: no sample has weight.
        """
        s, w = np.asarray(sums, dtype=np.float64), np.asarray(weights, dtype=np.float64)
        count, total = int((w > 0).sum()), float(w.sum())
        if count == 0:
            raise ValueError("no sample has anything to average: is the set of samples empty?")
        mean = float(s.sum()) / total
        if count == 1:
            return cls(mean, None, count)
        spread = float(((s - mean * w) ** 2).sum())
        return cls(mean, math.sqrt(count / (count - 1) * spread) / total, count)
