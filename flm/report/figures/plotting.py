"""Colours, style, empty axes, legends and PNG bytes of all figures.

The first colours are of Okabe and Ito's palette, which people with any colour vision tell apart.
"""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
INK, FAINT = "#222222", "#DDDDDD"
DPI = 120
LINE = 0.19  # inches of an entry in a legend
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "text.color": INK,
    "text.parse_math": False,  # the name of a run may have a dollar sign
    "svg.fonttype": "none",
    "svg.hashsalt": "flm",  # equal figures give equal files
}


@contextmanager
def styled() -> Iterator[None]:
    """Context in which figures are made and rendered in the project's style, whatever the user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the page's SVG keeps the text, for the reader's fonts
        yield


def png(figure: "Figure") -> bytes:
    """The figure as PNG in a palette of 256 colours, which takes a third of the size and is enough for flat colours."""
    from PIL import Image

    buffer = io.BytesIO()
    untangle(figure)
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    image = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def untangle(figure: "Figure") -> None:
    """Hides tick labels that overlap others. On a logarithmic axis powers of its base stay, on others the first label."""
    figure.draw_without_rendering()  # computes the layout
    for axes in [axes for outer in figure.axes for axes in (outer, *outer.child_axes)]:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            if axis.get_scale() == "log":
                base = axis.get_transform().base
                ticks.sort(key=lambda tick: abs(math.remainder(math.log(tick.get_loc(), base), 1)) > 1e-6)  # noqa: B023
            taken: list[Any] = []
            for label in [label for tick in ticks for label in (tick.label1, tick.label2)]:
                if label.get_visible() and label.get_text():
                    box = label.get_window_extent().padded(1)
                    label.set_visible(not any(box.overlaps(other) for other in taken))
                    taken += [box] if label.get_visible() else []


def run_colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each run, in order; they repeat after eight."""
    return {label: COLOURS[index % len(COLOURS)] for index, label in enumerate(dict.fromkeys(labels))}


def canvas(width: float, height: float, *grid: int, **options: Any) -> tuple["Figure", Any]:
    """A figure in inches and its axes; call it within `styled`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(*grid, **options)


def legend(axes: "Axes", left: float = 1.01) -> None:
    """A legend beside the axes, with equal entries once. The figure is made higher if the legend needs it."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        axes.legend(once.values(), once.keys(), loc="upper left", bbox_to_anchor=(left, 1.0), borderaxespad=0)
        axes.figure.set_figheight(max(axes.figure.get_figheight(), LINE * len(once) + 0.8))


def bulk(values: Sequence[float], widest: float = 8.0) -> tuple[float, float] | None:
    """The range of finite values within `widest` deviations of the median; None: no value is finite.

    A deviation here is 1.4826 times the median absolute deviation, which is the standard deviation of normal values, and at
    least 0.02. So a collapsed point among many does not press all others into a corner.
    """
    finite = np.asarray([value for value in values if math.isfinite(value)], dtype=float)
    if not finite.size:
        return None
    middle = np.median(finite)
    usual = max(1.4826 * float(np.median(np.abs(finite - middle))), 0.02)
    kept = finite[np.abs(finite - middle) <= widest * usual]
    return float(kept.min()), float(kept.max())
