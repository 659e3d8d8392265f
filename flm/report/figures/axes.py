"""Axes of figures: values, error bars, limits, scales and legends."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from flm.measures.estimate import Estimate
from flm.results.kinds import Number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = ("-", "--", ":", "-.")


def mean_of(value: Number) -> float:
    """The value as a plain number; nan if there is none."""
    if value is None:
        return float("nan")
    return value.mean if isinstance(value, Estimate) else float(value)


def errors(values: Sequence[Number]) -> list[float] | None:
    """Error bars of values."""
    return error_bars([value.standard_error if isinstance(value, Estimate) else None for value in values])


def error_bars(found: Sequence[float | None]) -> list[float] | None:
    """Lengths of error bars: 0 for an error that is unknown or too large to draw; None if there is no other."""
    drawn = [error if error is not None and 0 <= error < 1e100 else None for error in found]
    return None if all(error is None for error in drawn) else [error or 0.0 for error in drawn]


def drawable(value: Number) -> bool:
    """Whether a value exists and is small enough to draw. Axes fail if the square of a value overflows."""
    return abs(mean_of(value)) < 1e100


def line(axes: "Axes", points: Iterable[tuple[float, float]], **style: Any) -> None:
    """A line through the points that can be drawn."""
    kept = [(x, y) for x, y in points if drawable(x) and drawable(y)]
    if kept:
        axes.plot(*zip(*kept, strict=True), **style)


def without_explosions(axes: "Axes", values: Sequence[float]) -> None:
    """Sets an upper limit of y if a few huge values would hide all others."""
    finite = sorted(value for value in values if drawable(value))
    if not finite:
        return
    low, usual = finite[0], finite[math.floor(0.95 * (len(finite) - 1))]
    if finite[-1] > usual + 5 * (usual - low) > low:
        margin = 0.05 * (usual - low)
        axes.set_ylim(low - margin, usual + 3 * margin)


def steps_axis(axes: "Axes", steps: Iterable[int | None]) -> None:
    """Makes x a logarithmic axis of sampling steps, with a tick at each given number."""
    ticks = sorted({step for step in steps if step})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(step) for step in ticks])
    axes.set_xticks([], minor=True)
    if ticks:
        axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    axes.set_xlabel("sampling steps")


def log_scale(axes: "Axes", which: Literal["x", "y"]) -> None:
    """Makes an axis logarithmic with ticks at 1, 2 and 5 of each decade, so that a range within one decade has ticks too."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def shared_legend(figure: "Figure", axes: "Axes") -> None:
    """A legend below all axes, with the entries of one of them."""
    handles, labels = axes.get_legend_handles_labels()
    once: Mapping[str, Any] = dict(zip(labels, handles, strict=True))
    if once:
        figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=min(4, len(once)))
