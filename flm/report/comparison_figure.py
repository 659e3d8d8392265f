"""Models side by side as one figure: perplexity at the entropy of real text by sampling steps, and by time."""

from collections.abc import Mapping, Sequence

import numpy as np

from flm.measures.estimate import Estimate
from flm.measures.frontier_figure import perplexity_axis, perplexity_by
from flm.measures.plotting import INK, canvas, png, styled
from flm.report import figures
from flm.report.comparison import Compared


def comparison_figure(
    rows: Sequence[Compared], real: tuple[Estimate, Estimate] | None, scorer: str, colours: Mapping[str, str]
) -> bytes:
    """Two panels with the same heights. Hollow marks are not at the entropy of real text, and compare with nothing.

    Args:
        real: entropy and log perplexity of real text.
        colours: by label of the run.
    """
    drawn = [row for row in rows if row.quality]
    name = perplexity_by(scorer)
    with styled():
        figure, (by_steps, by_time) = canvas(8.4, 4.0, 1, 2, sharey=True)
        for row in drawn:
            timed = [steps for steps in row.quality if steps in row.ms_per_sample]
            _curve(by_steps, row, {steps: float(steps) for steps in row.quality}, colours)
            _curve(by_time, row, {steps: row.ms_per_sample[steps] for steps in timed}, colours)
        for axes in (by_steps, by_time):
            if real is not None:
                axes.axhline(real[1].mean, color=INK, linestyle="--", linewidth=1.1, label="real text")
        figures.steps_axis(by_steps, [steps for row in drawn for steps in row.quality])
        by_steps.set_ylabel(f"log {name}, nats per token")
        by_steps.set_title("hollow: not at the entropy of real text")
        by_time.set_xscale("log")
        by_time.xaxis.set_major_formatter("{x:g}")
        by_time.set_xlabel("milliseconds per sample")
        perplexity_axis(by_time, name)
        figures.shared_legend(figure, by_steps)
        return png(figure)


def _curve(axes, row: Compared, places: Mapping[int, float], colours: Mapping[str, str]) -> None:
    """Log perplexity over `places` by steps: full marks where it is at the entropy of real text."""
    colour = colours.get(row.label, INK)
    x = [places[steps] for steps in places]
    y = [float(np.log(row.quality[steps].ppl)) for steps in places]
    faces = [colour if row.quality[steps].reached else "white" for steps in places]
    axes.plot(x, y, color=colour, linewidth=1.0, label=row.label, marker="o", markersize=0)
    axes.scatter(x, y, s=28, c=faces, edgecolors=colour, zorder=3)
