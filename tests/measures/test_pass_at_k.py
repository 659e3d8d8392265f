from itertools import combinations

import pytest

from flm.measures.estimate import mean_pass_at_k, pass_at_k


def test_against_every_draw():
    for samples in range(1, 8):
        for correct in range(samples + 1):
            outcomes = [index < correct for index in range(samples)]
            for k in range(1, samples + 1):
                draws = [any(draw) for draw in combinations(outcomes, k)]
                assert pass_at_k(samples, correct, k) == pytest.approx(sum(draws) / len(draws), abs=1e-12)


@pytest.mark.parametrize(
    ("case", "value"), [((10, 3, 1), 0.3), ((10, 3, 5), 0.916667), ((20, 5, 10), 0.983746), ((5, 0, 1), 0), ((5, 5, 3), 1)]
)
def test_published_values(case, value):
    assert pass_at_k(*case) == pytest.approx(value, abs=5e-7)


def test_mean_over_problems_leaves_out_what_cannot_be_estimated():
    found = mean_pass_at_k([[True, False], [False, False], [True, True]], [1, 2, 10])
    assert list(found) == ["1", "2"]
    assert found["1"].mean == pytest.approx(0.5) and found["2"].mean == pytest.approx(2 / 3) and found["1"].count == 3


def test_impossible_cases():
    for case in ((3, 1, 4), (3, 1, 0), (3, 4, 1), (3, -1, 1)):
        with pytest.raises(ValueError, match="no such thing"):
            pass_at_k(*case)
