import math

import numpy as np
import pytest

from flm.measures.estimate import Estimate


def test_mean_and_error_by_hand():
    # 1, 2, 3, 6: mean 3, squared deviations 4 + 1 + 0 + 9 = 14, variance 14/3, of the mean 14/12
    estimate = Estimate.of([1, 2, 3, 6])
    assert (estimate.mean, estimate.count) == (3.0, 4)
    assert estimate.standard_error == pytest.approx(math.sqrt(14 / 12), rel=1e-12)


def test_one_value_has_no_error_and_none_has_no_mean():
    assert Estimate.of([2.5]) == Estimate(2.5, None, 1)
    with pytest.raises(ValueError, match="empty"):
        Estimate.of([])


def test_ratio_by_hand():
    # 10/4 pooled = 2.5; residuals 2 - 2.5 = -0.5 and 8 - 7.5 = 0.5; n/(n-1) = 2: sqrt(2 * 0.5) / 4
    estimate = Estimate.ratio([2, 8, 0], [1, 3, 0])
    assert (estimate.mean, estimate.count) == (2.5, 2)
    assert estimate.standard_error == pytest.approx(0.25, rel=1e-12)


def test_ratio_error_is_the_spread_over_repetitions():
    random = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(600):
        weights = random.integers(1, 30, size=80)
        rate = random.normal(3, 1, size=80)
        estimate = Estimate.ratio(weights * rate, weights)
        means.append(estimate.mean)
        errors.append(estimate.standard_error)
    # the spread of 600 means is known to about 3 percent
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_samples_of_one_group_are_not_independent():
    """Ten puzzles of each of 30 grids, on each of which a model has a rate of its own, drawn evenly from 0 to 1."""
    draws, found = np.random.default_rng(0), []
    for _ in range(400):
        rates = draws.uniform(size=30).repeat(10)
        groups = np.arange(30).repeat(10).tolist()
        found.append(Estimate.grouped((draws.uniform(size=300) < rates).astype(float).tolist(), groups))
    spread = np.std([one.mean for one in found], ddof=1)
    assert np.mean([one.standard_error for one in found]) == pytest.approx(spread, rel=0.12)
    assert found[0].count == 30
    values = [0.5, 2.0, 1.0, 4.0]
    assert Estimate.grouped(values, range(4)) == Estimate.of(values)
    assert Estimate.grouped(values, "aabb") == Estimate.ratio([2.5, 5.0], [2, 2])
