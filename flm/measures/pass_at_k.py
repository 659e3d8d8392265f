"""The unbiased estimate of pass@k (Chen et al., arXiv 2107.03374, equation 1)."""

from collections.abc import Sequence
from math import comb

from flm.measures.estimate import Estimate


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that of k samples drawn without replacement from these at least one is correct: 1 - C(n-c, k) / C(n, k).

    Raises:
        ValueError: k is not in [1, samples], or correct not in [0, samples].
    """
    if not (1 <= k <= samples and 0 <= correct <= samples):
        raise ValueError(f"pass@{k} of {correct} correct in {samples} samples: there is no such thing")
    return 1 - comb(samples - correct, k) / comb(samples, k)


def mean_pass_at_k(outcomes: Sequence[Sequence[bool]], ks: Sequence[int]) -> dict[str, Estimate]:
    """Mean over problems by k; a k above the smallest number of samples of a problem is left out.

    Args:
        outcomes: for each problem, whether each sample is right.
    """
    fewest = min(map(len, outcomes))
    return {str(k): Estimate.of([pass_at_k(len(right), sum(right), k) for right in outcomes]) for k in ks if 1 <= k <= fewest}
