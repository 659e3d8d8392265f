"""Figures of a report, each drawn from plain records to PNG bytes.

Colours are those of Okabe and Ito, which people with any colour vision tell apart; a run keeps its colour through all
figures, and markers or dashes say the rest.
"""

import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from flm.measures.estimate import Estimate
from flm.report.records import Bucket, Frontier, FrontierPoint, Likelihood, Number, Samples, Training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
MANY = 10  # curves that can each be named beside the axes
DASHES = ("-", "--", ":", "-.")
INK, FAINT = "#222222", "#DDDDDD"
DPI = 120
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
}


@contextmanager
def styled() -> Iterator[None]:
    """Within, figures are made and rendered in this report's style, whatever the user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"}):
        yield


def png(figure: "Figure") -> bytes:
    """Rendered, in a palette of 256 colours: a third of the size, and flat figures lose nothing."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    image = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def run_colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each run, in order; they repeat after eight."""
    return {label: COLOURS[index % len(COLOURS)] for index, label in enumerate(dict.fromkeys(labels))}


def frontier_figure(frontiers: Sequence[Frontier], colours: Mapping[str, str]) -> bytes:
    """Perplexity against entropy, a curve for each setting that was not swept; lower is better at one entropy.

    Args:
        frontiers: measured by one scorer.
        colours: by label of the run.
    """
    drawn = [curve for frontier in frontiers for curve in sweeps(frontier)]
    varying = {key for _, rest, _, _ in drawn for key in rest if len({repr(other.get(key)) for _, other, _, _ in drawn}) > 1}
    by_run = len({run for run, *_ in drawn}) > 1
    looks = list(dict.fromkeys(repr(sorted(rest.items())) for _, rest, _, _ in drawn))
    crowded, shown = by_run and len(drawn) > MANY, dict[int, str]()
    with styled():
        figure, axes = canvas(8.4, 4.4)
        for run, rest, _, points in drawn:
            look = looks.index(repr(sorted(rest.items())))
            named = [f"{rest[key]} {'step' if rest[key] == 1 else 'steps'}" for key in ("steps",) if key in rest]
            named += [f"{key} {rest[key]}" for key in sorted(rest) if key in varying and key != "steps"]
            axes.errorbar(
                [point.entropy.mean for point in points],
                [point.log_ppl.mean for point in points],
                xerr=_errors([point.entropy for point in points]),
                yerr=_errors([point.log_ppl for point in points]),
                color=colours.get(run, INK) if by_run else COLOURS[look % len(COLOURS)],
                marker=MARKERS[look % len(MARKERS)],
                elinewidth=0.8,
                label=None if crowded else ", ".join([run, *named] if by_run or not named else named),
            )
            shown[look] = ", ".join(named)
        if crowded:  # an entry for each curve would be longer than the axes are high
            for run in dict.fromkeys(run for run, *_ in drawn):
                axes.plot([], [], color=colours.get(run, INK), label=run)
            for look, name in shown.items():
                axes.plot([], [], color=INK, marker=MARKERS[look % len(MARKERS)], linestyle="none", label=name)
        for entropy, log_ppl in dict.fromkeys(frontier.real for frontier in frontiers if frontier.real):
            axes.axvline(entropy.mean, color=INK, linewidth=0.8, linestyle=":")
            axes.plot(entropy.mean, log_ppl.mean, "*", color=INK, markersize=12, label="real text", linestyle="none")
        swept = " and ".join(sorted({along for _, _, along, _ in drawn}))
        axes.set_xlabel("unigram entropy within a sample, nats")
        name = perplexity_by(frontiers[0].scorer)
        axes.set_ylabel(f"log {name}, nats per token")
        perplexity_axis(axes, name)
        axes.set_title(textwrap.fill(f"along a curve: {swept}; scored by {frontiers[0].scorer}", 85))
        _legend(axes, 1.14)
        return png(figure)


def perplexity_by(scorer: str) -> str:
    """What a judge's perplexity is called: only a language model's is generative perplexity."""
    found = re.match(r"(\d+-gram) of validation text", scorer)
    return "generative perplexity" if found is None else f"perplexity under {found[1]}s"


def sweeps(frontier: Frontier) -> list[tuple[str, dict[str, Any], str, list[FrontierPoint]]]:
    """(run, fixed settings, swept setting, points along it) of each curve."""
    curves: dict[str, tuple[str, dict[str, Any], str, list[FrontierPoint]]] = {}
    for point in frontier.points:
        run = frontier.run_of(point.settings)
        along = frontier.along.get(run) or ("temperature" if "temperature" in point.settings else "steps")
        fixed = {key: value for key, value in point.settings.items() if key not in (along, "run")}
        curves.setdefault(repr((run, sorted(fixed.items()))), (run, fixed, along, []))[3].append(point)
    for _, _, along, points in curves.values():
        points.sort(key=lambda point, along=along: point.settings.get(along, 0.0))
    return list(curves.values())


DIVERSITY = {
    "entropy_nats": "unigram entropy within a sample, nats",
    "distinct_1": "distinct-1, different of all tokens",
    "distinct_2": "distinct-2, different of all pairs",
    "distinct_3": "distinct-3, different of all triples",
}


def diversity_figure(samples: Sequence[Samples], colours: Mapping[str, str]) -> bytes:
    """Entropy and distinct-n by number of steps, with real text as level lines: one where all runs have the same."""
    with styled():
        figure, axes = canvas(8.4, 5.6, 2, 2)
        for ax, (name, title) in zip(axes.flat, DIVERSITY.items(), strict=True):
            levels = [None if run.real is None else run.real.metrics.get(name) for run in samples]
            common = None not in levels and len(set(map(mean_of, levels))) == 1
            for run, level in zip(samples, levels, strict=True):
                colour = colours[run.source.label]
                found = [(one.steps, one.metrics.get(name)) for one in run.generated if one.metrics.get(name) is not None]
                values = [value for _, value in found]
                if found:
                    steps = [step for step, _ in found]
                    ax.errorbar(
                        steps, list(map(mean_of, values)), _errors(values), color=colour, marker="o", label=run.source.label
                    )
                if level is not None and not common:
                    ax.axhline(
                        mean_of(level), color=colour, linestyle="--", linewidth=1.1, label=f"{run.source.label}, real text"
                    )
            if common:
                ax.axhline(mean_of(levels[0]), color=INK, linestyle="--", linewidth=1.1, label="real text")
            steps_axis(ax, [one.steps for run in samples for one in run.generated])
            ax.set_title(title)
            if name.startswith("distinct"):
                ax.set_ylim(bottom=0)
        shared_legend(figure, axes.flat[0])
        return png(figure)


def cross_entropy_figure(trainings: Sequence[Training], colours: Mapping[str, str]) -> bytes:
    """Validation loss by tau, beside the best decoder without context: the gap is what context gives."""
    with styled():
        figure, axes = canvas(8.4, 3.9)
        for run in trainings:
            label, colour = run.source.label, colours[run.source.label]
            _centres(axes, run.by_tau, [b.value for b in run.by_tau], color=colour, marker="o", label=label)
            free = [b.context_free for b in run.by_tau]
            _centres(axes, run.by_tau, free, color=colour, linestyle="--", label=f"{label}, without context")
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tau, the clock: 0 noise, 1 data")
        axes.set_ylabel("nats per token")
        _legend(axes)
        return png(figure)


def throughput_figure(trainings: Sequence[Training], samples: Sequence[Samples], colours: Mapping[str, str]) -> bytes:
    """Training tokens per second for each run, and milliseconds per sample by number of steps."""
    from matplotlib.ticker import LogLocator, NullLocator

    trained = [run for run in trainings if run.tokens_per_second is not None]
    sampled = [run for run in samples if any(one.ms_per_sample is not None for one in run.generated)]
    with styled():
        figure, axes = canvas(8.4, 3.4, 1, bool(trained) + bool(sampled), squeeze=False)
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
                found = [(one.steps, one.ms_per_sample) for one in run.generated if one.ms_per_sample is not None]
                steps, cost = zip(*found, strict=True)
                ax.plot(steps, cost, marker="o", color=colours[run.source.label], label=run.source.label)
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_locator(NullLocator())
            steps_axis(ax, [one.steps for run in sampled for one in run.generated])
            ax.set_ylabel("milliseconds per sample")
            ax.set_title("sampling")
            ax.legend()
        return png(figure)


def likelihood_figure(likelihoods: Sequence[Likelihood], colours: Mapping[str, str]) -> bytes:
    """Nats per token summed along t: a line climbs where its bound comes from, and ends at the bound."""
    several = len({row.corpus for row in likelihoods}) > 1
    seen: dict[str, int] = {}
    with styled():
        figure, axes = canvas(8.4, 3.8)
        for row in likelihoods:
            label = row.source.label
            seen[label] = seen.get(label, -1) + 1
            times, sums = [0.0], [0.0]
            for low, high, nats in row.spans:
                times += [low, high]
                sums += [sums[-1], sums[-1] + nats]
            named = [label, *([row.corpus] if several else []), *([row.variant] if row.variant else [])]
            dash = DASHES[seen[label] % len(DASHES)]
            axes.plot(times, sums, linestyle=dash, color=colours[label], label=", ".join(named))
            axes.annotate(f"{sums[-1]:.2f}", (times[-1], sums[-1]), (5, 0), textcoords="offset points", va="center")
        axes.set_xlim(0, 1.06)
        axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("t, physical time: 0 noise, 1 data")
        axes.set_ylabel("nats per token, summed up to t")
        _legend(axes)
        return png(figure)


def mean_of(value: Number) -> float:
    """The number behind a value; nan where there is none."""
    if value is None:
        return float("nan")
    return value.mean if isinstance(value, Estimate) else float(value)


def canvas(width: float, height: float, *grid: int, **options: Any) -> tuple["Figure", Any]:
    """A figure in inches and its axes; call it within `styled`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(*grid, **options)


def _errors(values: Sequence[Number]) -> list[float] | None:
    """Standard errors for error bars, 0 where not known; None if none is known."""
    errors = [value.standard_error if isinstance(value, Estimate) else None for value in values]
    return None if all(error is None for error in errors) else [error or 0.0 for error in errors]


def _centres(axes: "Axes", buckets: Sequence[Bucket], values: Sequence[Number], **style: Any) -> None:
    """A line through the values at the centres of their buckets; buckets without a value are left out."""
    points = [((b.low + b.high) / 2, mean_of(v)) for b, v in zip(buckets, values, strict=True) if v is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def steps_axis(axes: "Axes", steps: Sequence[int | None]) -> None:
    """Numbers of sampling steps along x."""
    ticks = sorted({step for step in steps if step})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(step) for step in ticks])
    axes.set_xticks([], minor=True)
    if ticks:
        axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    axes.set_xlabel("sampling steps")


def perplexity_axis(axes: "Axes", name: str) -> None:
    """On the right, what the log perplexities on the left are perplexities of."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    low, high = axes.get_ylim()
    right = axes.secondary_yaxis("right", functions=(np.exp, lambda ppl: np.log(np.maximum(ppl, 1e-9))))
    # even steps would crowd at the top of a wide range
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high - low > 1.4 else MaxNLocator(7))
    right.yaxis.set_major_formatter("{x:,g}")
    right.set_ylabel(name)


def _legend(axes: "Axes", left: float = 1.01) -> None:
    """Beside the axes, where it covers nothing; equal entries once."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        axes.legend(once.values(), once.keys(), loc="upper left", bbox_to_anchor=(left, 1.0), borderaxespad=0)


def shared_legend(figure: "Figure", axes: "Axes") -> None:
    """Below all axes, from the entries of one of them."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=min(4, len(once)))
