"""Labels of ticks as they lie on the finished picture: none on another, none cut off, and the round ones stay."""

from itertools import combinations

import pytest

from flm.measures.estimate import Estimate
from flm.report.comparison import Compared, Quality
from flm.report.figures.axes import log_scale, steps_axis
from flm.report.figures.plotting import canvas, png, styled
from flm.report.figures.quality import comparison_figure
from flm.report.figures.throughput import lines_figure
from flm.results.kinds import Line, Plot

CROWDED = (1, 3, 4, 15, 16, 32, 63, 64)


@pytest.fixture(autouse=True)
def style():
    with styled():
        yield


def labels(axis):
    """Those that are seen, left to right or upwards."""
    seen = [label for tick in axis.get_major_ticks() for label in (tick.label1, tick.label2)]
    low, high = sorted(axis.get_view_interval())
    inside = {tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high}
    kept = {label for tick in inside for label in (tick.label1, tick.label2)}
    return [label for label in seen if label in kept and label.get_visible() and label.get_text()]


def check(figure):
    png(figure)
    figure.draw_without_rendering()
    width, height = figure.bbox.width, figure.bbox.height
    for axes in [axes for outer in figure.axes for axes in (outer, *outer.child_axes)]:
        for axis in (axes.xaxis, axes.yaxis):
            boxes = [label.get_window_extent() for label in labels(axis)]
            assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])], axis
            assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes), axis


def texts(axis):
    return [label.get_text() for label in labels(axis)]


def model(label, steps, slowness):
    quality = {count: Quality(400.0 + 300 / count, 4.0, True) for count in steps}
    return Compared(label, None, 1, None, None, quality, {count: slowness * count for count in steps})


@pytest.mark.parametrize("slowness", [0.9, 14.0, 300.0])
def test_models_whose_steps_nearly_agree(slowness):
    rows = [model("one", CROWDED[::2], slowness), model("two", CROWDED[1::2], slowness)]
    figure = comparison_figure(rows, (Estimate(4.0, 0.1, 8), Estimate(5.5, 0.1, 8)), "gpt2-large", {"one": "#0072B2"})
    check(figure)
    by_steps, by_time = figure.axes[:2]
    assert texts(by_steps.xaxis) == ["1", "3", "4", "16", "32", "64"]
    assert len(texts(by_time.xaxis)) >= 3


def test_less_than_a_decade_has_labels_too():
    figure, axes = canvas(3, 2)
    axes.plot([11, 60], [0.2, 0.7])
    log_scale(axes, "x")
    log_scale(axes, "y")
    check(figure)
    assert texts(axes.xaxis) == ["20", "50"] and texts(axes.yaxis) == ["0.2", "0.5"]


def test_more_steps_than_there_is_room_for():
    figure, axes = canvas(3, 2)
    axes.plot(range(1, 65), range(1, 65))
    steps_axis(axes, range(1, 65))
    check(figure)
    assert set(texts(axes.xaxis)) >= {"1", "2", "4", "8", "16", "32", "64"}


def test_a_plot_of_another_kind_of_result():
    points = Line("line", (0.001, 0.00101, 1000.0, 1024.0), (1.0, 2.0, 3.0, 4.0))
    check(lines_figure([("run", Plot("p", "title", "x", "y", (points,), x_is_log=True))], {"run": "#0072B2"}))
