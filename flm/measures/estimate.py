"""Estimates from samples: a mean with its standard error, and pass@k."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean estimated from independent samples.

    Attributes:
        mean: in the unit of the values.
        standard_error: of the mean over samples; None if fewer than two samples have weight.
        count: samples with weight.
    """

    mean: float
    standard_error: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Mean of one value per sample. Raises ValueError if there is none."""
        return cls.ratio(values, [1.0] * len(values))

    @classmethod
    def grouped(cls, values: Sequence[float], groups: Sequence[Hashable] | None) -> "Estimate":
        """Mean of one value a sample, where samples of one group are not independent: error and count are of groups.

        None: each sample is a group of its own.
        """
        groups = range(len(values)) if groups is None else groups
        sizes = Counter(groups)
        sums = dict.fromkeys(sizes, 0.0)
        for value, group in zip(values, groups, strict=True):
            sums[group] += value
        return cls.ratio([sums[group] for group in sizes], list(sizes.values()))

    @classmethod
    def ratio(cls, sums: Sequence[float], weights: Sequence[float]) -> "Estimate":
        """The pooled mean sum_i s_i / sum_i w_i, where s_i is the sum of the w_i >= 0 values of sample i.

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


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """pass@k from n samples of which c are correct: 1 - C(n-c, k) / C(n, k).

    This is the probability that at least one of k samples, drawn from these without replacement, is correct. It is an
    unbiased estimate (Chen et al., arXiv 2107.03374, equation 1).

    Raises:
        ValueError: k is not in [1, samples], or correct not in [0, samples].
    """
    if not (1 <= k <= samples and 0 <= correct <= samples):
        raise ValueError(f"pass@{k} of {correct} correct in {samples} samples: there is no such thing")
    return 1 - comb(samples - correct, k) / comb(samples, k)


def mean_pass_at_k(
    outcomes: Sequence[Sequence[bool]], ks: Sequence[int], groups: Sequence[Hashable] | None = None
) -> dict[str, Estimate]:
    """Mean pass@k over problems, by k. A k larger than the fewest samples of a problem is left out.

    Args:
        outcomes: for each problem, whether each sample is right.
        groups: of the problems, as of `Estimate.grouped`; None: each is its own.
    """
    fewest = min(map(len, outcomes))
    values = {k: [pass_at_k(len(right), sum(right), k) for right in outcomes] for k in ks if 1 <= k <= fewest}
    return {str(k): Estimate.grouped(found, groups) for k, found in values.items()}
