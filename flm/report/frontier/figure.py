"""The figure of a frontier: log perplexity against entropy, one curve for each combination of the other settings."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flm.annotations import shown
from flm.report.figures.axes import error_bars
from flm.report.figures.plotting import COLOURS, INK, MARKERS, bulk, canvas, legend
from flm.report.frontier.curves import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY = 10  # the most curves that are each named in the legend


def scorer_name(entry: Mapping[str, Any]) -> str:
    """Name, revision and protocol of a scorer. Numbers are comparable only if all three agree."""
    name, revision, protocol = str(entry.get("name") or entry["scorer"]), entry.get("revision"), entry.get("protocol")
    if revision and name.count("/") > 2:  # a path of a checkpoint is cut, since its hash names it
        kind, colon, path = name.rpartition(":")
        name = f"{kind}{colon}{'/'.join(path.split('/')[-3:])}"
    return ", ".join(str(part) for part in (name, revision and str(revision)[:12], protocol) if part)


def perplexity_by(scorer: str) -> str:
    """The name of a scorer's perplexity. Only that of a language model is called generative perplexity."""
    found = re.match(r"(\d+-gram) of validation text", scorer)
    return "generative perplexity" if found is None else f"perplexity under {found[1]}s"


def frontier_figure(
    curves: Sequence[Curve],
    levels: Sequence[tuple[float, float]],
    scorer: str,
    colours: Mapping[str, str],
    nulls: Sequence[Curve] = (),
) -> "Figure":
    """At equal entropy, a lower curve is better. Call it within `plotting.styled`.

    Args:
        curves: measured by one scorer; their settings name the `run`.
        levels: (entropy, log perplexity) of real text, in nats.
        scorer: its name, from `scorer_name`.
        colours: by run.
        nulls: curves of texts that no model wrote, drawn in the background.
    """
    fixed = [{key: value for key, value in curve.settings.items() if key != "run"} for curve in curves]
    runs = [str(curve.settings["run"]) for curve in curves]
    varying = {key for rest in fixed for key in rest if len({repr(other.get(key)) for other in fixed}) > 1}
    by_run = len(set(runs)) > 1
    looks = list(dict.fromkeys(repr(sorted(rest.items())) for rest in fixed))
    crowded, listed = by_run and len(curves) > MANY, dict[int, str]()
    figure, axes = canvas(8.4, 4.4)
    for run, rest, curve in zip(runs, fixed, curves, strict=True):
        look = looks.index(repr(sorted(rest.items())))
        named = [f"{rest[key]} {'step' if rest[key] == 1 else 'steps'}" for key in ("steps",) if key in rest]
        named += [f"{key} {shown(rest[key])}" for key in sorted(rest) if key in varying and key != "steps"]
        axes.errorbar(
            [point.entropy for point in curve.points],
            [point.log_ppl for point in curve.points],
            xerr=error_bars([point.entropy_error for point in curve.points]),
            yerr=error_bars([point.log_ppl_error for point in curve.points]),
            color=colours.get(run, INK) if by_run else COLOURS[look % len(COLOURS)],
            marker=MARKERS[look % len(MARKERS)],
            elinewidth=0.8,
            label=None if crowded else ", ".join([run, *named] if by_run or not named else named),
        )
        listed[look] = ", ".join(named)
    if crowded:  # a legend with an entry for each curve would be higher than the axes
        for run in dict.fromkeys(runs):
            axes.plot([], [], color=colours.get(run, INK), label=run)
        for look, name in listed.items():
            axes.plot([], [], color=INK, marker=MARKERS[look % len(MARKERS)], linestyle="none", label=name)
    flagged = [point for curve in curves for point in curve.points if point.repeats_more]
    if flagged:
        where = [point.entropy for point in flagged], [point.log_ppl for point in flagged]
        axes.plot(*where, "x", color=INK, markersize=9, linestyle="none", label="repeats more than real text")
    for number, curve in enumerate(nulls):
        where = [point.entropy for point in curve.points], [point.log_ppl for point in curve.points]
        look = {"color": "#999999", "linewidth": 0.8, "linestyle": "--", "markersize": 4, "zorder": 1}
        axes.plot(*where, marker=MARKERS[number % len(MARKERS)], label=f"no model: {curve.settings['run']}", **look)
    for entropy, log_ppl in dict.fromkeys(levels):
        axes.axvline(entropy, color=INK, linewidth=0.8, linestyle=":")
        axes.plot(entropy, log_ppl, "*", color=INK, markersize=12, label="real text", linestyle="none")
    beyond = _limit(axes, curves, levels)
    if nulls and not beyond:
        _around(axes, [(point.entropy, point.log_ppl) for curve in curves for point in curve.points] + list(levels))
    axes.set_xlabel("unigram entropy within a sample, nats" + (f"\n{beyond}" if beyond else ""))
    name = perplexity_by(scorer)
    axes.set_ylabel(f"log {name}, nats per token")
    perplexity_axis(axes, name)
    swept = " and ".join(sorted({curve.along for curve in curves}))
    axes.set_title(textwrap.fill(f"along a curve: {swept}; scored by {scorer}", 85))
    legend(axes, 1.14)
    return figure


def _limit(axes: "Axes", curves: Sequence[Curve], levels: Sequence[tuple[float, float]]) -> str:
    """Limits the axes to the bulk of the points, so that one collapsed point does not hide all others.

    Returns:
        A sentence about the points outside; "" if there are none.
    """
    points = [point for curve in curves for point in curve.points]
    within = [bulk([value for value in values]) for values in zip(*((p.entropy, p.log_ppl) for p in points), strict=True)]
    if not points or None in within:
        return ""
    outside = [p for p in points if any(not a <= v <= b for v, (a, b) in zip((p.entropy, p.log_ppl), within, strict=True))]
    if not outside:
        return ""
    for index, (limit, (low, high)) in enumerate(zip((axes.set_xlim, axes.set_ylim), within, strict=True)):
        low, high = min([low, *(level[index] for level in levels)]), max([high, *(level[index] for level in levels)])
        margin = 0.08 * (high - low) or 0.1
        limit(low - margin, high + margin)
    first = outside[0]
    named = ", ".join(f"{key} {value}" for key, value in first.settings.items())
    more = f", and {len(outside) - 1} more" if len(outside) > 1 else ""
    return textwrap.fill(f"beyond the axes: {named} at {first.entropy:.2f} nats, log {first.log_ppl:.2f}{more}", 85)


def _around(axes: "Axes", points: Sequence[tuple[float, float]]) -> None:
    """Limits the axes to the given points, with half their range as margin on each side."""
    for limit, values in zip((axes.set_xlim, axes.set_ylim), zip(*points, strict=True), strict=True):
        margin = 0.5 * (max(values) - min(values)) or 0.1
        limit(min(values) - margin, max(values) + margin)


def perplexity_axis(axes: "Axes", name: str) -> None:
    """An axis on the right with the perplexities whose logarithms are on the left."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    low, high = axes.get_ylim()
    right = axes.secondary_yaxis("right", functions=(np.exp, lambda ppl: np.log(np.maximum(ppl, 1e-9))))
    # even steps would crowd at the top of a wide range
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high - low > 1.4 else MaxNLocator(7))
    right.yaxis.set_major_formatter("{x:,g}")
    right.set_ylabel(name)
