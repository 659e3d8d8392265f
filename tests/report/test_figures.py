"""Figures show the numbers of the files: read back from the axes, and from the pixels."""

import dataclasses
import io
import json
import math
import re

import numpy as np
import pytest
import result_folders as make
from PIL import Image

from flm.report.figures import losses, quality
from flm.report.figures.drawing import Art, themed_svg
from flm.report.figures.film_strip import LINE, LINES, _lines, film_figure, shade, visible
from flm.report.figures.plotting import COLOURS as PALETTE
from flm.report.figures.plotting import INK, bulk, png, run_colours, styled
from flm.report.figures.throughput import lines_figure, throughput_figure
from flm.report.files import read_results
from flm.report.frontier.curves import Curve, Point
from flm.report.frontier.figure import frontier_figure
from flm.report.frontier.result_kind import Frontier
from flm.report.kinds.film import Film, Frame
from flm.report.kinds.likelihood import Likelihood
from flm.report.kinds.samples import Samples
from flm.report.kinds.training import Training
from flm.report.models import models_of
from flm.results.kinds import Line, Plot


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = make.everything(tmp_path_factory.mktemp("results"))
    make.samples(root / "eval" / "other", "other", scale=0.9)
    make.frontier(root / "eval" / "other", "other", shift=-0.3)
    return read_results([root])


@pytest.fixture(autouse=True)
def style():
    with styled():
        yield


def axes_of(figure):
    return figure.axes


def sweep(frontiers, scorer=None):
    """The figure of sweeps."""
    curves = [curve for one in frontiers for curve in one.curves]
    levels = [(one.real[0].mean, one.real[1].mean) for one in frontiers if one.real is not None]
    return frontier_figure(curves, levels, scorer or frontiers[0].scorer, COLOURS)


COLOURS = {"nano": "#0072B2", "other": "#D55E00"}


def lines_by_label(axes):
    handles, labels = axes.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def data(line) -> tuple[np.ndarray, np.ndarray]:
    """x and y of a line, or of the line that error bars belong to."""
    line = line.lines[0] if hasattr(line, "lines") else line
    return tuple(np.asarray(values, dtype=float) for values in line.get_data())


def luminance(colour: str) -> float:
    """WCAG 2 relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_frontier_curves_are_the_points_of_the_file_along_temperature(results):
    (axes,) = axes_of(sweep(results.of(Frontier)))
    drawn = lines_by_label(axes)
    assert set(drawn) == {"nano, 8 steps", "nano, 64 steps", "other, 8 steps", "other, 64 steps", "real text"}
    x, y = data(drawn["other, 8 steps"])
    expected = [4.1 + 2.0 * (temperature - 0.7) - 0.1 * math.log(8) - 0.3 for temperature in (0.7, 0.8, 0.9, 1.0)]
    np.testing.assert_allclose(y, expected)
    assert list(x) == sorted(x) and x[0] == pytest.approx(3.4 + 0.02 * math.log(8))
    half_widths = [(segment[1][1] - segment[0][1]) / 2 for segment in drawn["other, 8 steps"].lines[2][1].get_segments()]
    np.testing.assert_allclose(half_widths, 0.04)  # one standard error of log perplexity
    assert [float(v[0]) for v in drawn["real text"].get_data()] == [4.117, 3.821]
    colours = {label: line.lines[0].get_color() for label, line in drawn.items() if label != "real text"}
    assert colours["nano, 8 steps"] == colours["nano, 64 steps"] == COLOURS["nano"] != colours["other, 8 steps"]
    assert "gpt2-large" in axes.get_title(loc="left")


def test_a_sweep_out_of_order_is_drawn_in_order(tmp_path):
    path = make.frontier(tmp_path)
    content = json.loads(path.read_text())
    content["points"].reverse()
    make.write(path, content)
    (frontier,) = read_results([path]).of(Frontier)
    assert len(frontier.curves) == 2
    for curve in frontier.curves:
        assert curve.along == "temperature" and set(curve.settings) == {"run", "steps"}
        assert [point.settings["temperature"] for point in curve.points] == [0.7, 0.8, 0.9, 1.0]


def test_one_collapsed_point_does_not_hide_the_others(results):
    """A sample of one token over and over has no entropy, and a perplexity that has nothing to do with the rest."""
    before = axes_of(sweep(results.of(Frontier)))[0]
    frontier = results.of(Frontier)[0]
    collapsed = Curve({"run": "nano", "steps": 1}, "temperature", (Point({"steps": 1, "temperature": 0.1}, 0.0, 60.0),))
    curves = [*frontier.curves, collapsed]
    axes = frontier_figure(curves, [(4.117, 3.821)], frontier.scorer, COLOURS).axes[0]
    for (low, high), points in ((axes.get_xlim(), (3.44, 4.117)), (axes.get_ylim(), (3.68, 4.49))):
        assert low < points[0] < points[1] < high and high - low < 1.5
    assert "beyond the axes: steps 1, temperature 0.1 at 0.00 nats, log 60.00" in axes.get_xlabel().replace("\n", " ")
    assert "beyond" not in before.get_xlabel()


def test_the_bulk_keeps_wide_sweeps_and_drops_what_lies_far_off():
    even = [3.0, 3.3, 3.6, 3.9, 4.2]
    assert bulk(even) == (3.0, 4.2) and bulk([*even, 0.0, float("nan")]) == (0.0, 4.2)  # within the usual spread
    assert bulk([3.9, 4.0, 4.1, 0.0]) == (3.9, 4.1) and bulk([2.0, 2.0, 2.0, 9.0]) == (2.0, 2.0)
    assert bulk([5.0]) == (5.0, 5.0) and bulk([float("inf")]) is None


def test_diversity_stands_beside_real_text(results):
    drawn = axes_of(quality.diversity_figure(results.of(Samples), COLOURS))
    entropy, _, distinct_2, _ = drawn
    lines = lines_by_label(entropy)
    assert set(lines) == {"nano", "other", "real text"}  # one level: both runs have the same real text
    np.testing.assert_allclose(data(lines["nano"]), [[1, 8, 64], [2.871, 3.618, 3.944]])
    assert set(lines["real text"].get_ydata()) == {4.117}
    np.testing.assert_allclose(data(lines_by_label(distinct_2)["nano"])[1], [0.313, 0.573, 0.668])
    assert [label.get_text() for label in entropy.get_xticklabels()] == ["1", "8", "64"]


def test_different_real_texts_are_different_levels(results):
    first, second = results.of(Samples)
    real = type(first.real)(**{**first.real.__dict__, "metrics": {"entropy_nats": 5.5}})
    changed = type(second)(second.source, second.generated, real)
    entropy = axes_of(quality.diversity_figure([first, changed], COLOURS))[0]
    levels = {k: set(line.get_ydata()) for k, line in lines_by_label(entropy).items() if "real text" in k}
    assert levels == {f"{first.source.label}, real text": {4.117}, f"{second.source.label}, real text": {5.5}}


def test_a_run_without_real_text_is_not_held_to_that_of_another(results):
    first, second = results.of(Samples)
    alone = type(second)(second.source, second.generated, None)
    lines = lines_by_label(axes_of(quality.diversity_figure([first, alone], COLOURS))[0])
    assert set(lines) == {"nano", "other", "nano, real text"} and set(lines["nano, real text"].get_ydata()) == {4.117}
    lines = lines_by_label(axes_of(quality.diversity_figure([alone], COLOURS))[0])
    assert set(lines) == {"other"}


def test_only_a_language_models_perplexity_is_called_generative(results):
    by_3_grams = ("3-gram of validation text, every token", "perplexity under 3-grams")
    for scorer, name in (by_3_grams, ("gpt2-large, published", "generative perplexity")):
        (axes,) = axes_of(sweep(results.of(Frontier), scorer))
        assert axes.get_ylabel() == f"log {name}, nats per token"
        assert axes.child_axes[0].get_ylabel() == name


def test_cross_entropy_is_that_of_the_last_validation_and_skips_empty_tenths(results):
    (axes,) = axes_of(losses.cross_entropy_figure(results.of(Training), COLOURS))
    lines = lines_by_label(axes)
    free = [4.87 * (1 - (i + 0.5) / 10) for i in range(10)]
    there = [i for i in range(10) if i != 3]
    np.testing.assert_allclose(lines["nano"].get_xdata(), [(i + 0.5) / 10 for i in there])
    np.testing.assert_allclose(lines["nano"].get_ydata(), [0.8123 * free[i] for i in there], atol=1e-4)
    np.testing.assert_allclose(lines["nano, without context"].get_ydata(), free, atol=1e-4)


def test_throughput_is_the_median_of_the_last_start(results):
    training, sampling = axes_of(throughput_figure(results.of(Training), results.of(Samples), COLOURS))
    assert [bar.get_width() for bar in training.patches] == [3468.0]  # of 3000, 3468 and a burst of 10000
    np.testing.assert_allclose(lines_by_label(sampling)["nano"].get_ydata(), [11.25, 90.0, 720.0])


def test_likelihood_climbs_to_the_bound(results):
    (axes,) = axes_of(losses.likelihood_figure(results.of(Likelihood), COLOURS))
    x, y = lines_by_label(axes)["nano"].get_data()
    heights = dict(zip(x, y, strict=True))  # the last height at each t
    assert heights == pytest.approx({0.0: 0.0, 0.3: 0.31, 0.6: 1.58, 0.8: 2.354})
    assert 2.2 == pytest.approx(y[list(x).index(0.8)])  # decoding is a step at its t
    assert any(text.get_text() == "2.35" for text in axes.texts)


def test_figures_are_small_pngs_that_show_something(results):
    drawn = {
        "frontier": sweep(results.of(Frontier)),
        "diversity": quality.diversity_figure(results.of(Samples), COLOURS),
        "ce": losses.cross_entropy_figure(results.of(Training), COLOURS),
        "throughput": throughput_figure(results.of(Training), results.of(Samples), COLOURS),
        "likelihood": losses.likelihood_figure(results.of(Likelihood), COLOURS),
    }
    for name, figure in drawn.items():
        content = png(figure)
        assert len(content) < 200_000, name
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        wanted = np.array([int(COLOURS["nano"][i : i + 2], 16) for i in (1, 3, 5)])
        share = (np.abs(pixels.astype(int) - wanted).max(-1) < 24).mean()
        assert 1e-4 < share < 0.5, (name, share)  # the run's colour is there


def test_runs_get_different_colours_with_contrast_to_white():
    colours = run_colours(["a", "b", "a", "c", "d", "e", "f", "g", "h"])
    assert list(colours) == list("abcdefgh") and len(set(colours.values())) == 8
    assert all(1.05 / (luminance(colour) + 0.05) > 2 for colour in colours.values())


def film(probability: float, tokens, steps=1) -> Film:
    frame = Frame(0.5, tuple(tokens), (probability,) * len(tokens), (False,) * len(tokens))
    return Film(None, steps, (frame,))


def test_shading_grows_with_probability_and_keeps_text_legible():
    shades = [luminance(shade(p / 20)) for p in range(21)]
    assert shades == sorted(shades, reverse=True) and shades[0] == 1.0
    ink = luminance(INK)
    assert all((value + 0.05) / (ink + 0.05) >= 7 for value in shades)  # WCAG AAA
    assert shade(0.5) == "#badbf6"  # half way from white to the full shade
    assert shade(-0.1) == shade(0.0) and shade(1.1) == shade(1.0)


def test_a_film_has_the_shade_of_its_probabilities():
    def share(probability):
        drawn = png(film_figure([film(probability, ["abcdefg"] * 24)]))
        pixels = np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB")).astype(int)
        wanted = [int(shade(0.62)[i : i + 2], 16) for i in (1, 3, 5)]  # a shade that the key below does not have
        return (np.abs(pixels - wanted).max(-1) <= 2).mean()

    assert share(0.62) > 0.15 and share(0.05) < 0.002


def test_lines_of_a_film_lose_nothing_until_the_last_is_full():
    tokens = ["one", " two", "\n", " a-very-long-token-" * 4, "", " end"]
    lines = _lines(film(0.5, tokens).frames[0])
    assert "".join(text for line in lines for text, _, _ in line) == visible("".join(tokens))
    assert all(sum(len(text) for text, _, _ in line) <= LINE for line in lines)
    full = _lines(film(0.5, ["x"] * 10_000).frames[0])
    assert len(full) == LINES and all(sum(len(text) for text, _, _ in line) == LINE for line in full)
    words = _lines(film(0.5, [" sevens"] * 20).frames[0])
    assert all(text == " sevens" for line in words for text, _, _ in line)  # broken between tokens, not within


def test_a_board_breaks_where_its_rows_end():
    lines = _lines(film(0.5, "123434122143" + "4321").frames[0], 4)
    assert ["".join(text for text, _, _ in line) for line in lines] == ["1234", "3412", "2143", "4321"]
    assert len(_lines(film(0.5, "1" * 36).frames[0], 6)) == 6 > LINES


def test_a_full_film_is_a_small_file():
    """Four moments with as many tokens as are shown; the largest figure has thirteen, and 200 kB."""
    rng = np.random.default_rng(0)
    frames = []
    for index in range(3):
        tokens = tuple("".join(map(chr, rng.integers(33, 126, 4))) for _ in range(100))
        frames.append(Frame(index / 3, tokens, tuple(rng.random(100).tolist()), (False,) * 100))
    drawn = film_figure([Film(None, 1, tuple(frames[:1])), Film(None, 64, tuple(frames))])
    assert len(png(drawn)) < 200_000 * 4 / 13


def test_learning_curves_are_the_log(results):
    (axes,) = axes_of(losses.learning_figure(results.of(Training), COLOURS))
    lines = lines_by_label(axes)
    np.testing.assert_allclose(data(lines["nano, validation"]), [[500, 1000], [3, 2]])
    # logged in the step under way: the value at "step 479" is of the loss after 480 steps
    np.testing.assert_allclose(data(lines["nano, training"]), [[480, 490, 495, 980, 990, 995], [6, 5, 4.5, 4, 3, 2.5]])


def test_learning_rates_stand_in_order_with_a_line_for_each_optimiser(results):
    (run,) = results.of(Training)

    def trained(kind, rate, loss, **more):
        optim = {"_target_": f"flm.training.optimizers.{kind}", "lr": rate} | more
        source = dataclasses.replace(run.source, training={"optim": optim})
        series = {run.validated: ((1, 9.0), (2, loss))}
        return dataclasses.replace(run, source=source, metrics=dataclasses.replace(run.metrics, series=series))

    runs = [trained("AdamW", 5e-3, 2.0), trained("MuonWithAdamW", 2e-2, 1.5, muon_on="blocks."), trained("AdamW", 1e-3, 3.0)]
    (axes,) = axes_of(losses.learning_rate_figure([*runs, trained("AdamW", None, 1.0)]))
    lines = lines_by_label(axes)
    np.testing.assert_allclose(data(lines["AdamW"]), [[1e-3, 5e-3], [3, 2]])
    np.testing.assert_allclose(data(lines["MuonWithAdamW, Muon on blocks."]), [[2e-2], [1.5]])


def test_generation_over_training_stands_at_the_steps_done(results):
    (axes,) = axes_of(losses.generation_figure(results.of(Training), COLOURS))
    np.testing.assert_allclose(data(lines_by_label(axes)["nano, 8 steps"]), [[500, 1000], [2.5, 3.5]])
    assert axes.get_title(loc="left") == "entropy within a sample, nats"


def test_long_curves_are_thinned_to_means():
    points = [(step, float(step % 2)) for step in range(1, 60_001)]
    thin = losses.thinned(points)
    assert len(thin) == losses.POINTS and np.mean([y for _, y in thin]) == pytest.approx(0.5)
    assert thin[0] == (50.5, 0.5) and thin[-1] == (59_950.5, 0.5)


def test_one_explosion_does_not_flatten_a_learning_curve(tmp_path):
    path = make.training(tmp_path / "nano").parent / "metrics" / "version_1" / "metrics.csv"
    path.write_text(path.read_text().replace("\n0,3000,979,4,", "\n0,3000,979,1e9,"))
    (axes,) = axes_of(losses.learning_figure(read_results([tmp_path]).of(Training), COLOURS))
    low, high = axes.get_ylim()
    assert low < 2 and 6 < high < 20


def test_svg_takes_the_pages_colours_and_keeps_to_its_own_names(results):
    svg = themed_svg(sweep(results.of(Frontier)), "frontier")
    for colour in (*PALETTE[:2], INK, "#FFFFFF"):
        assert colour.lower() not in svg
    assert "var(--run-0)" in svg and "var(--run-1)" in svg and "var(--ink)" in svg
    names = re.findall(r' id="([^"]*)"', svg)
    assert names and all(name.startswith("frontier-") for name in names)
    used = re.findall(r'(?:href="#|url\(#)([^")]*)', svg)
    assert used and set(used) <= set(names)
    for text in ("nano, 8 steps", "real text", "unigram entropy within a sample, nats"):
        assert f">{text}</text>" in svg


def test_a_label_is_text_whatever_it_holds(tmp_path):
    """Neither formulas nor markup, and none is lost."""
    make.frontier(tmp_path / "a", label="$x^2$ <b>&")
    make.frontier(tmp_path / "b", label="_hidden\\frac\n\x00")
    results = read_results([tmp_path])
    assert results.runs == ["$x^2$ <b>&", "hidden\\frac"]
    svg = Art.of(models_of(results)).picture("odd", lambda: sweep(results.of(Frontier)), "odd").svg
    assert "$x^2$ &lt;b&gt;&amp;, 8 steps" in svg and "hidden\\frac, 8 steps" in svg


def test_lines_of_several_runs_share_a_reference_and_show_single_points():
    """A model with one number of evaluations is seen; what is the same for all runs is drawn once, and no run's own."""

    def plot(x, y, ideal=(0.0, 1.0)):
        reference = Line("ideal", (1, 16), ideal, is_reference=True)
        return Plot("solved", "solved", "evaluations", "share", (Line("", x, y), reference), x_is_log=True)

    (axes,) = axes_of(lines_figure([("a", plot((1, 4), (0.2, 0.6))), ("b", plot((16,), (0.9,)))], {"a": INK, "b": INK}))
    lines = lines_by_label(axes)
    assert set(lines) == {"a", "b", "ideal"} and axes.get_xscale() == "log"
    assert lines["b"].get_marker() == "o" and lines["ideal"].get_linestyle() == "--"
    apart = [("a", plot((1,), (0.2,))), ("b", plot((1,), (0.2,), (0.1, 1.0)))]
    (axes,) = axes_of(lines_figure(apart, {"a": INK, "b": INK}))
    assert set(lines_by_label(axes)) == {"a", "b", "a, ideal", "b, ideal"}
