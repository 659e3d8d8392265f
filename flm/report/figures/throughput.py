"""Figures of the speed of training and sampling, and of plots that other kinds of results bring."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from flm.report.figures.axes import DASHES, drawable, line, log_scale, steps_axis
from flm.report.figures.plotting import COLOURS, INK, canvas, legend
from flm.report.kinds.samples import Samples
from flm.report.kinds.training import Training
from flm.results.kinds import Plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def throughput_figure(trainings: Sequence[Training], samples: Sequence[Samples], colours: Mapping[str, str]) -> "Figure":
    """Training tokens per second for each run, and milliseconds per sample by number of steps."""
    trained = [run for run in trainings if drawable(run.tokens_per_second)]
    sampled = [run for run in samples if any(drawable(one.ms_per_sample) for one in run.generated)]
    figure, axes = canvas(8.4, max(3.4, 0.3 * len(trained)), 1, bool(trained) + bool(sampled), squeeze=False)
    panels = iter(axes.flat)
    if trained:
        ax = next(panels)
        speeds = [run.tokens_per_second for run in trained]
        bars = ax.barh([run.source.label for run in trained], speeds, color=[colours[run.source.label] for run in trained])
        ax.bar_label(bars, fmt="{:,.0f}", padding=3)
        ax.set_xlim(0, 1.25 * max(speeds))
        ax.set_ylim(-0.7, max(len(trained), 2) - 0.3)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.locator_params(axis="x", nbins=4)
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.set_xlabel("tokens per second")
        ax.set_title("training")
    if sampled:
        ax = next(panels)
        for run in sampled:
            found = [(float(one.steps or 1), one.ms_per_sample) for one in run.generated if one.ms_per_sample is not None]
            line(ax, found, marker="o", color=colours[run.source.label], label=run.source.label)
        log_scale(ax, "y")
        steps_axis(ax, [one.steps for run in sampled for one in run.generated])
        ax.set_ylabel("milliseconds per sample")
        ax.set_title("sampling")
        ax.legend()
    return figure


_MARKED = 12  # lines of at most so many points have markers, without which a single point would be invisible


def lines_figure(plots: Sequence[tuple[str, Plot]], colours: Mapping[str, str]) -> "Figure":
    """Pairs (run, plot) of one name on one pair of axes. If there are several runs, dashes tell the lines of one run apart."""
    figure, axes = canvas(8.4, 3.8)
    several = len({run for run, _ in plots}) > 1
    references = Counter(one for _, plot in plots for one in plot.lines if one.is_reference)
    shared = {one for one, count in references.items() if count > 1}  # of several runs, so drawn once in a neutral colour
    for run, plot in plots:
        for index, one in enumerate(one for one in plot.lines if one not in shared):
            colour = colours[run] if several else COLOURS[index % len(COLOURS)]
            dash = "--" if one.is_reference else DASHES[2 * (index % 2)] if several else "-"
            label = f"{run}, {one.label}" if one.label else run
            marker = "o" if len(one.x) <= _MARKED else None
            line(axes, zip(one.x, one.y, strict=True), color=colour, linestyle=dash, marker=marker, label=label)
    for one in shared:
        line(axes, zip(one.x, one.y, strict=True), color=INK, linestyle="--", label=one.label)
    first = plots[0][1]
    if first.x_is_log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(first.title)
    axes.set_xlabel(first.x_label)
    axes.set_ylabel(first.y_label)
    legend(axes)
    return figure
