"""Models side by side: each number from the file it belongs to; a perplexity at another entropy is marked as such."""

import json
import math

import numpy as np
import pytest
import result_folders as make

from flm.report.comparison import compared, comparison_table, real_level
from flm.report.figures.plotting import run_colours, styled
from flm.report.figures.quality import comparison_figure
from flm.report.files import read_results
from flm.report.frontier.figure import frontier_figure
from flm.report.frontier.result_kind import Frontier
from flm.report.kinds.training import Training
from flm.report.tables import markdown
from flm.results.kinds import Table


def changed(path, change):
    content = json.loads(path.read_text())
    change(content)
    make.write(path, content)


@pytest.fixture
def results(tmp_path):
    """Two models: `nano` with everything, `other` with a sweep and an exact likelihood."""
    make.everything(tmp_path)
    make.frontier(tmp_path / "eval" / "other", "other", shift=-0.3)
    changed(tmp_path / "eval" / "other" / "frontier.json", other_sweep)
    make.likelihood(tmp_path / "eval" / "other", "other", kind="exact")
    return read_results([tmp_path])


def other_sweep(content):
    """At 8 steps it is reached with another churn only, and of two such the lower counts; at 64 it is missed twice."""
    content["algorithm"] = "AR"
    missed, reached = dict(content["matched"][1]), dict(content["matched"][0])
    content["matched"] = [
        missed | {"run": "other", "steps": 8, "churn": 0.0},
        reached | {"run": "other", "steps": 8, "churn": 0.5, "ppl": 70.5},
        reached | {"run": "other", "steps": 8, "churn": 0.9, "ppl": 71.5},
        missed | {"run": "other", "steps": 64, "churn": 0.0},
        missed | {"run": "other", "steps": 64, "churn": 0.5, "closest_ppl": 200.0, "closest_entropy_nats": 4.1},
        reached | {"run": "other", "steps": 64, "churn": 0.5, "target": "4.5", "ppl": 1.0},
    ]
    for point in content["points"]:
        point["ms_per_sample"] = 3.0 * point["settings"]["steps"] + 10 * (point["settings"]["temperature"] != 0.9)


def test_each_number_is_the_runs_own(results):
    nano, other = compared(results)
    assert (nano.label, nano.algorithm, nano.step, nano.training_tokens_per_second) == ("nano", "FLM", 4321, 3468)
    assert (nano.likelihood.bound, nano.likelihood.bits_per_character) == ("variational upper bound", 2.0533)
    assert nano.ms_per_sample == {1: 11.25, 8: 90.0, 64: 720.0}  # of the samples, not of the sweep
    assert nano.quality[64].ppl == 87.65 and nano.quality[64].reached
    assert (nano.quality[8].ppl, nano.quality[8].entropy_nats, nano.quality[8].reached) == (123.4, 3.98, False)
    assert (other.algorithm, other.step, other.training_tokens_per_second) == ("AR", 4321, None)
    assert other.likelihood.bound == "exact"
    assert other.ms_per_sample == {8: 24.0, 64: 192.0}  # the fastest setting
    assert (other.quality[8].ppl, other.quality[8].reached) == (70.5, True)
    assert (other.quality[64].ppl, other.quality[64].reached) == (200.0, False)  # nearest, although not the lowest
    assert real_level(results)[1].mean == 3.821


def test_the_table_marks_what_is_not_at_the_entropy_of_real_text(results):
    table = comparison_table(compared(results))
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert rows[0]["ppl, 64 steps"] == 87.65 and rows[0]["ppl, 8 steps"] == "(123.4 at 3.98 nats)"
    assert rows[1]["ppl, 8 steps"] == 70.5 and rows[1]["ms per sample, 1 step"] is None
    bits = rows[0]["bits per character"]
    assert bits.mean == 2.0533 and bits.standard_error == pytest.approx(2.0533 * 0.013 / 2.354)
    assert rows[1]["which is"] == "exact" and "ppl, 1 step" not in table.columns
    lines = markdown(table).splitlines()
    assert lines[0] == "## comparison" and len({line.count("|") for line in lines[2:]}) == 1
    assert "| 87.65 |" in lines[4] and "| (123.4 at 3.98 nats) |" in lines[4]


def test_a_bar_in_a_cell_is_no_column():
    assert markdown(Table("x_y", ("a", "b"), (("1|2", None), ("c\nd", 0.5)))).splitlines() == [
        "## x y", "", "| a | b |", "| --- | --- |", "| 1\\|2 |  |", "| c d | 0.500 |"]  # fmt: skip


def test_the_chosen_bound_counts(tmp_path):
    path = make.likelihood(tmp_path)

    def two_bounds(content):
        values = content["likelihood"]["corpora"]["data"]["variants"]["network"]
        both = {"network": values, "evidence": values | {"bits_per_character": 1.25}}
        content["likelihood"]["corpora"]["data"]["variants"] = both
        content["likelihood"]["chosen"] = "evidence"

    changed(path, two_bounds)
    (row,) = compared(read_results([tmp_path]))
    assert row.likelihood.bits_per_character == 1.25 and row.quality == {}


def test_perplexities_of_another_judge_stay_out(results, tmp_path):
    changed(tmp_path / "eval" / "other" / "frontier.json", lambda content: content["scorer"].update(name="another"))
    nano, other = compared(read_results([tmp_path]))
    assert nano.quality and not other.quality


def test_the_figure_shows_the_same_numbers(results):
    rows = compared(results)
    colours = {"nano": "#0072B2", "other": "#D55E00"}
    with styled():
        figure = comparison_figure(rows, real_level(results), "gpt2-large", colours)
    by_steps, by_time = figure.axes[:2]
    for axes, place in ((by_steps, lambda row, steps: steps), (by_time, lambda row, steps: row.ms_per_sample[steps])):
        for row, marks in zip(rows, axes.collections, strict=True):
            expected = [(place(row, steps), math.log(one.ppl)) for steps, one in row.quality.items()]
            np.testing.assert_allclose(marks.get_offsets(), expected)
            hollow = [tuple(face) == (1, 1, 1, 1) for face in marks.get_facecolors()]
            assert hollow == [not one.reached for one in row.quality.values()]
        assert [line.get_ydata()[0] for line in axes.lines if line.get_label() == "real text"] == [3.821]
    figure.canvas.draw()
    assert not any("$" in label.get_text() for axes in figure.axes for label in axes.get_xticklabels(which="both"))


def test_many_curves_share_a_legend(tmp_path):
    for index in range(6):
        make.frontier(tmp_path / str(index), f"run{index}", shift=0.1 * index)
    found = read_results([tmp_path]).of(Frontier)
    curves = [curve for one in found for curve in one.curves]
    with styled():
        figure = frontier_figure(curves, [], found[0].scorer, run_colours([f"run{index}" for index in range(6)]))
    _, labels = figure.axes[0].get_legend_handles_labels()
    assert labels.count("8 steps") == labels.count("64 steps") == 1 and {f"run{index}" for index in range(6)} < set(labels)


def test_a_start_that_had_nothing_left_to_train_says_nothing_about_speed(tmp_path):
    run = make.training(tmp_path / "run").parent
    empty = run / "metrics" / "version_2" / "metrics.csv"
    empty.parent.mkdir()
    empty.write_text("epoch,step\n")
    (training,) = read_results([run]).of(Training)
    assert training.tokens_per_second == 3468
