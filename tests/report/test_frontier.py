import math

import pytest

from flm.report.frontier.curves import Curve, Point, curves, frontier_table, match


def curve(*entropy_and_log_ppl, errors=(None, None)):
    points = tuple(
        Point({"temperature": 0.8 + 0.1 * i}, entropy, log_ppl, *errors)
        for i, (entropy, log_ppl) in enumerate(entropy_and_log_ppl)
    )
    return Curve({}, "temperature", points)


def test_log_ppl_is_interpolated_linearly_in_entropy():
    found = match(curve((4.0, 2.0), (5.0, 3.0), (6.0, 7.0)), 5.25)
    assert found.log_ppl == pytest.approx(4.0)  # a quarter of the way from 3 to 7
    assert found.along == pytest.approx(0.925)
    assert (found.crossings, found.closest) == (1, None)


@pytest.mark.parametrize(("entropy", "log_ppl"), [(4.0, 2.0), (5.0, 3.0), (6.0, 7.0)])
def test_a_measured_point_is_met_exactly_once(entropy, log_ppl):
    found = match(curve((4.0, 2.0), (5.0, 3.0), (6.0, 7.0)), entropy)
    assert (found.log_ppl, found.crossings) == (pytest.approx(log_ppl), 1)


@pytest.mark.parametrize(("entropy", "nearest"), [(3.99, 4.0), (1.0, 4.0), (6.01, 6.0)])
def test_nothing_is_extrapolated(entropy, nearest):
    found = match(curve((4.0, 2.0), (6.0, 7.0)), entropy)
    assert (found.log_ppl, found.standard_error, found.along, found.crossings) == (None, None, None, 0)
    assert found.closest.entropy == nearest


def test_equally_close_points_give_the_lower_perplexity():
    assert match(curve((6.0, 9.0), (6.0, 7.0)), 7.0).closest.log_ppl == 7.0


def test_of_several_crossings_the_lowest_counts():
    # up to 6, back to 4, up again: 5 is crossed at log ppl 4, 6 and 3
    found = match(curve((4.0, 2.0), (6.0, 6.0), (4.0, 6.0), (6.0, 0.0)), 5.0)
    assert (found.log_ppl, found.crossings) == (pytest.approx(3.0), 3)
    assert found.along == pytest.approx(1.05)
    # neighbours in the sweep are joined, not neighbours in entropy: 5.5 lies between the first two only
    found = match(curve((6.0, 4.0), (5.0, 2.0), (5.2, 9.0)), 5.5)
    assert (found.log_ppl, found.crossings) == (pytest.approx(3.0), 1)


def test_a_level_stretch_and_a_single_point():
    assert match(curve((5.0, 4.0), (5.0, 3.0), (6.0, 8.0)), 5.0).log_ppl == pytest.approx(3.0)
    assert match(curve((5.0, 4.0)), 5.0).log_ppl == 4.0
    assert match(curve((5.0, 4.0)), 5.1).closest.log_ppl == 4.0


def test_error_by_finite_differences():
    def at(values):
        (h_a, y_a), (h_b, y_b) = values
        return match(curve((h_a, y_a), (h_b, y_b)), 5.25).log_ppl

    base = [[5.0, 3.0], [6.0, 7.0]]
    variance = 0.0
    for i in range(2):
        for j, error in enumerate((0.02, 0.05)):
            moved = [list(point) for point in base]
            moved[i][j] += 1e-6
            variance += ((at(moved) - at(base)) / 1e-6 * error) ** 2
    found = match(curve(*base, errors=(0.02, 0.05)), 5.25)
    assert found.standard_error == pytest.approx(math.sqrt(variance), rel=1e-4)
    assert match(curve(*base), 5.25).standard_error is None


def test_table_has_a_row_for_each_curve_and_target():
    points = [
        Point({"run": "flm", "steps": 8, "temperature": 1.0}, 5.0, math.log(80)),
        Point({"run": "ar", "steps": 128, "temperature": 1.0}, 5.6, math.log(40)),
        Point({"run": "flm", "steps": 8, "temperature": 0.8}, 4.0, math.log(20)),
        Point({"run": "ar", "steps": 128, "temperature": 0.9}, 5.4, math.log(30)),
    ]
    flm, flm_five, ar, ar_five = frontier_table(points, {"data": 4.5, "5.5": 5.5})
    # halfway in entropy is the geometric mean of the perplexities
    assert (flm["run"], flm["steps"], flm["target"], flm["target_entropy_nats"]) == ("flm", 8, "data", 4.5)
    assert flm["ppl"] == pytest.approx(40) and flm["log_ppl"] == pytest.approx(math.log(40))
    assert flm["temperature"] == pytest.approx(0.9)
    assert flm["closest_ppl"] is None
    assert flm_five["ppl"] is None and flm_five["temperature"] is None and flm_five["crossings"] == 0
    assert flm_five["closest_ppl"] == pytest.approx(80)
    assert (flm_five["closest_entropy_nats"], flm_five["closest_temperature"]) == (5.0, 1.0)
    assert ar["ppl"] is None and ar["closest_entropy_nats"] == 5.4
    assert ar_five["ppl"] == pytest.approx(math.sqrt(30 * 40))


def test_curves_split_on_every_other_setting():
    made = curves(
        [Point({"steps": s, "churn": c, "temperature": t}, 5.0, 1.0) for s in (1, 4) for c in (0.0, 1.0) for t in (1.1, 0.9)]
    )
    assert [dict(c.settings) for c in made] == [{"steps": s, "churn": c} for s in (1, 4) for c in (0.0, 1.0)]
    assert all([p.settings["temperature"] for p in c.points] == [0.9, 1.1] for c in made)
    along_churn = curves([Point({"steps": 4, "churn": c}, 5.0, 1.0) for c in (0.5, 0.0)], along="churn")
    assert [p.settings["churn"] for p in along_churn[0].points] == [0.0, 0.5]


def test_refuses_what_it_cannot_order():
    with pytest.raises(ValueError, match="no number for temperature"):
        curves([Point({"steps": 4}, 5.0, 1.0)])
    with pytest.raises(ValueError, match="same settings"):
        curves([Point({"temperature": 1.0}, 5.0, 1.0), Point({"temperature": 1.0}, 5.1, 1.0)])
    with pytest.raises(ValueError, match="finite"):
        Point({"temperature": 1.0}, 5.0, math.inf)
