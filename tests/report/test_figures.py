"""Figures show the numbers of the files: read back from the axes, and from the pixels."""

import io
import math

import numpy as np
import pytest
import result_folders as make
from PIL import Image

from flm.measures.plotting import INK, run_colours
from flm.report import figures
from flm.report.files import read_results
from flm.report.film_strip import LINE, LINES, _lines, film_figure, shade, visible
from flm.report.records import Film, Frame


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = make.everything(tmp_path_factory.mktemp("results"))
    make.samples(root / "eval" / "other", "other", scale=0.9)
    make.frontier(root / "eval" / "other", "other", shift=-0.3)
    return read_results([root], 1)


@pytest.fixture
def axes_of(monkeypatch):
    """The axes that a figure function draws, by title or position."""
    monkeypatch.setattr(figures, "png", lambda figure: figure)
    return lambda figure: figure.axes


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


def test_frontier_curves_are_the_points_of_the_file_along_temperature(results, axes_of):
    (axes,) = axes_of(figures.frontier_figure(results.frontiers, COLOURS))
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


def test_a_sweep_out_of_order_is_drawn_in_order(results):
    frontier = results.frontiers[0]
    shuffled = type(frontier)(**{**frontier.__dict__, "points": frontier.points[::-1]})
    for curve in figures.sweeps(shuffled):
        assert curve.along == "temperature" and set(curve.settings) == {"run", "steps"}
        assert [point.settings["temperature"] for point in curve.points] == [0.7, 0.8, 0.9, 1.0]


def test_diversity_stands_beside_real_text(results, axes_of):
    drawn = axes_of(figures.diversity_figure(results.samples, COLOURS))
    entropy, _, distinct_2, _ = drawn
    lines = lines_by_label(entropy)
    assert set(lines) == {"nano", "other", "real text"}  # one level: both runs have the same real text
    np.testing.assert_allclose(data(lines["nano"]), [[1, 8, 64], [2.871, 3.618, 3.944]])
    assert set(lines["real text"].get_ydata()) == {4.117}
    np.testing.assert_allclose(data(lines_by_label(distinct_2)["nano"])[1], [0.313, 0.573, 0.668])
    assert [label.get_text() for label in entropy.get_xticklabels()] == ["1", "8", "64"]


def test_different_real_texts_are_different_levels(results, axes_of):
    first, second = results.samples
    real = type(first.real)(**{**first.real.__dict__, "metrics": {"entropy_nats": 5.5}})
    changed = type(second)(second.source, second.generated, real)
    entropy = axes_of(figures.diversity_figure([first, changed], COLOURS))[0]
    levels = {k: set(line.get_ydata()) for k, line in lines_by_label(entropy).items() if "real text" in k}
    assert levels == {f"{first.source.label}, real text": {4.117}, f"{second.source.label}, real text": {5.5}}


def test_a_run_without_real_text_is_not_held_to_that_of_another(results, axes_of):
    first, second = results.samples
    alone = type(second)(second.source, second.generated, None)
    lines = lines_by_label(axes_of(figures.diversity_figure([first, alone], COLOURS))[0])
    assert set(lines) == {"nano", "other", "nano, real text"} and set(lines["nano, real text"].get_ydata()) == {4.117}
    lines = lines_by_label(axes_of(figures.diversity_figure([alone], COLOURS))[0])
    assert set(lines) == {"other"}


def test_only_a_language_models_perplexity_is_called_generative(results, axes_of):
    by_3_grams = ("3-gram of validation text, every token", "perplexity under 3-grams")
    for scorer, name in (by_3_grams, ("gpt2-large, published", "generative perplexity")):
        judged = [type(one)(**{**one.__dict__, "scorer": scorer}) for one in results.frontiers]
        (axes,) = axes_of(figures.frontier_figure(judged, COLOURS))
        assert axes.get_ylabel() == f"log {name}, nats per token"
        assert axes.child_axes[0].get_ylabel() == name


def test_cross_entropy_is_that_of_the_last_validation_and_skips_empty_tenths(results, axes_of):
    (axes,) = axes_of(figures.cross_entropy_figure(results.trainings, COLOURS))
    lines = lines_by_label(axes)
    free = [4.87 * (1 - (i + 0.5) / 10) for i in range(10)]
    there = [i for i in range(10) if i != 3]
    np.testing.assert_allclose(lines["nano"].get_xdata(), [(i + 0.5) / 10 for i in there])
    np.testing.assert_allclose(lines["nano"].get_ydata(), [0.8123 * free[i] for i in there], atol=1e-4)
    np.testing.assert_allclose(lines["nano, without context"].get_ydata(), free, atol=1e-4)


def test_throughput_is_the_median_of_the_last_start(results, axes_of):
    training, sampling = axes_of(figures.throughput_figure(results.trainings, results.samples, COLOURS))
    assert [bar.get_width() for bar in training.patches] == [3468.0]  # of 3000, 3468 and a burst of 10000
    np.testing.assert_allclose(lines_by_label(sampling)["nano"].get_ydata(), [11.25, 90.0, 720.0])


def test_likelihood_climbs_to_the_bound(results, axes_of):
    (axes,) = axes_of(figures.likelihood_figure(results.likelihoods, COLOURS))
    x, y = lines_by_label(axes)["nano"].get_data()
    heights = dict(zip(x, y, strict=True))  # the last height at each t
    assert heights == pytest.approx({0.0: 0.0, 0.3: 0.31, 0.6: 1.58, 0.8: 2.354})
    assert 2.2 == pytest.approx(y[list(x).index(0.8)])  # decoding is a step at its t
    assert any(text.get_text() == "2.35" for text in axes.texts)


def test_figures_are_small_pngs_that_show_something(results):
    drawn = {
        "frontier": figures.frontier_figure(results.frontiers, COLOURS),
        "diversity": figures.diversity_figure(results.samples, COLOURS),
        "ce": figures.cross_entropy_figure(results.trainings, COLOURS),
        "throughput": figures.throughput_figure(results.trainings, results.samples, COLOURS),
        "likelihood": figures.likelihood_figure(results.likelihoods, COLOURS),
    }
    for name, png in drawn.items():
        assert len(png) < 200_000, name
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
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
        png = film_figure([film(probability, ["abcdefg"] * 24)])
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
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


def test_a_full_film_is_a_small_file():
    """Four moments with as many tokens as are shown; the largest figure has thirteen, and 200 kB."""
    rng = np.random.default_rng(0)
    frames = []
    for index in range(3):
        tokens = tuple("".join(map(chr, rng.integers(33, 126, 4))) for _ in range(100))
        frames.append(Frame(index / 3, tokens, tuple(rng.random(100).tolist()), (False,) * 100))
    png = film_figure([Film(None, 1, tuple(frames[:1])), Film(None, 64, tuple(frames))])
    assert len(png) < 200_000 * 4 / 13
