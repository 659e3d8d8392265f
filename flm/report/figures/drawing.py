"""Renders each figure twice: as SVG in the page's colours, light or dark, and as PNG."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from flm.report.figures.plotting import COLOURS, FAINT, INK, png, run_colours, styled, untangle
from flm.report.kinds.samples import Samples
from flm.report.kinds.training import Training
from flm.report.page import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Run = TypeVar("Run", Samples, Training)
_THEME = {
    **{colour.lower(): f"var(--run-{index})" for index, colour in enumerate(COLOURS)},
    INK.lower(): "var(--ink)",
    FAINT.lower(): "var(--faint)",
    "#888888": "var(--axis)",
    "#ffffff": "var(--paper)",
}


@dataclass
class Art:
    """Draws the figures of one report, and keeps them as PNG by name.

    Attributes:
        colours: by label of the run, the same in all figures.
        names: model of each run, by the run's label; runs that differ in their seed have one model.
        files: PNG files by name.
    """

    colours: dict[str, str]
    names: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, models: Mapping[str, Sequence[str]]) -> "Art":
        """Colours for a report.

        Args:
            models: labels of each model's runs, by the model's name. They share a colour.
        """
        colours = run_colours(list(models))
        names = {label: name for name, labels in models.items() for label in labels}
        return cls(colours | {label: colours[name] for label, name in names.items()}, names)

    def as_models(self, runs: Sequence[Run]) -> list[Run]:
        """The same runs, labelled by their models, so that seeds of a model share one entry in a legend."""
        return [
            replace(run, source=replace(run.source, label=self.names.get(run.source.label, run.source.label))) for run in runs
        ]

    def picture(self, name: str, draw: Callable[[], "Figure"], description: str) -> Picture:
        """The figure of `draw` as a block of the page. Its PNG is kept in `files`."""
        with styled():
            figure = draw()
            self.files[name] = png(figure)
            return Picture(themed_svg(figure, name), description)


def themed_svg(figure: "Figure", name: str) -> str:
    """SVG for a page with several figures: ids begin with `name`, and colours are variables of the page."""
    buffer = io.StringIO()
    untangle(figure)
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return re.sub(r"(?<=: )#[0-9a-f]{6}\b", lambda found: _THEME.get(found[0], found[0]), svg)
