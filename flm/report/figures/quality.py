"""Figures of the diversity of samples, and of the perplexities of models side by side."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flm.measures.estimate import Estimate
from flm.report.comparison import Compared
from flm.report.figures.axes import drawable, errors, log_scale, mean_of, shared_legend, steps_axis
from flm.report.figures.plotting import INK, canvas
from flm.report.frontier.figure import perplexity_axis, perplexity_by
from flm.report.kinds.samples import Samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIVERSITY = {
    "entropy_nats": "unigram entropy within a sample, nats",
    "distinct_1": "distinct-1, different of all tokens",
    "distinct_2": "distinct-2, different of all pairs",
    "distinct_3": "distinct-3, different of all triples",
}


def diversity_figure(samples: Sequence[Samples], colours: Mapping[str, str]) -> "Figure":
    """Entropy and distinct-n by number of steps. Dashed lines are real text: one line if it is the same for all runs."""
    figure, axes = canvas(8.4, 5.6, 2, 2)
    for ax, (name, title) in zip(axes.flat, DIVERSITY.items(), strict=True):
        levels = [None if run.real is None else run.real.metrics.get(name) for run in samples]
        common = None not in levels and len(set(map(mean_of, levels))) == 1
        for run, level in zip(samples, levels, strict=True):
            label, colour = run.source.label, colours[run.source.label]
            found = [(one.steps, one.metrics.get(name)) for one in run.generated if drawable(one.metrics.get(name))]
            values = [value for _, value in found]
            if found:
                steps = [step for step, _ in found]
                ax.errorbar(steps, list(map(mean_of, values)), errors(values), color=colour, marker="o", label=label)
            if drawable(level) and not common:
                ax.axhline(mean_of(level), color=colour, linestyle="--", linewidth=1.1, label=f"{label}, real text")
        if common and drawable(levels[0]):
            ax.axhline(mean_of(levels[0]), color=INK, linestyle="--", linewidth=1.1, label="real text")
        steps_axis(ax, [one.steps for run in samples for one in run.generated])
        ax.set_title(title)
        if name.startswith("distinct"):
            ax.set_ylim(bottom=0)
    shared_legend(figure, axes.flat[0])
    return figure


def comparison_figure(
    rows: Sequence[Compared], real: tuple[Estimate, Estimate] | None, scorer: str, colours: Mapping[str, str]
) -> "Figure":
    """Log perplexity by sampling steps, and by time per sample. Hollow markers are not at the entropy of real text.

    Args:
        real: entropy and log perplexity of real text.
        colours: by label of the run.
    """
    drawn = [row for row in rows if row.quality]
    name = perplexity_by(scorer)
    figure, (by_steps, by_time) = canvas(8.4, 4.0, 1, 2, sharey=True)
    for row in drawn:
        timed = [steps for steps in row.quality if steps in row.ms_per_sample]
        _curve(by_steps, row, {steps: float(steps) for steps in row.quality}, colours)
        _curve(by_time, row, {steps: row.ms_per_sample[steps] for steps in timed}, colours)
    for axes in (by_steps, by_time):
        if real is not None:
            axes.axhline(real[1].mean, color=INK, linestyle="--", linewidth=1.1, label="real text")
    steps_axis(by_steps, [steps for row in drawn for steps in row.quality])
    by_steps.set_ylabel(f"log {name}, nats per token")
    by_steps.set_title("hollow: not at the entropy of real text")
    log_scale(by_time, "x")
    by_time.set_xlabel("milliseconds per sample")
    perplexity_axis(by_time, name)
    shared_legend(figure, by_steps)
    return figure


def _curve(axes: "Axes", row: Compared, places: Mapping[int, float], colours: Mapping[str, str]) -> None:
    """Draws one model's log perplexities. Markers are full if they are at the entropy of real text.

    Args:
        places: x by number of steps.
    """
    colour = colours.get(row.label, INK)
    kept = [steps for steps in places if row.quality[steps].ppl > 0 and drawable(row.quality[steps].ppl)]
    x = [places[steps] for steps in kept]
    y = [float(np.log(row.quality[steps].ppl)) for steps in kept]
    faces = [colour if row.quality[steps].reached else "white" for steps in kept]
    axes.plot(x, y, color=colour, linewidth=1.0, label=row.label, marker="o", markersize=0)
    axes.scatter(x, y, s=28, c=faces, edgecolors=colour, zorder=3)
