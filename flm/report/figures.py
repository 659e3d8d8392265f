"""Figures of a report, each drawn from plain records to PNG bytes.

A run keeps its colour through all figures, and markers or dashes say the rest.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flm.measures import frontier_figure as frontiers_drawn
from flm.measures.estimate import Estimate
from flm.measures.frontier import Curve, Point
from flm.measures.plotting import INK, canvas, legend, png, styled
from flm.report.records import Bucket, Frontier, FrontierPoint, Likelihood, Number, Samples, Training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = ("-", "--", ":", "-.")


def frontier_figure(frontiers: Sequence[Frontier], colours: Mapping[str, str]) -> bytes:
    """Perplexity against entropy of sweeps that one scorer measured; colours by label of the run."""
    levels = [(one.real[0].mean, one.real[1].mean) for one in frontiers if one.real]
    drawn = [curve for one in frontiers for curve in sweeps(one)]
    with styled():
        return png(frontiers_drawn.frontier_figure(drawn, levels, frontiers[0].scorer, colours))


def sweeps(frontier: Frontier) -> list[Curve]:
    """Its curves; a file may hold points in any order, and of settings that no number was swept along."""
    curves: dict[str, tuple[dict[str, Any], str, list[FrontierPoint]]] = {}
    for point in frontier.points:
        run = frontier.run_of(point.settings)
        along = frontier.along.get(run) or ("temperature" if "temperature" in point.settings else "steps")
        fixed = {"run": run} | {key: value for key, value in point.settings.items() if key not in (along, "run")}
        curves.setdefault(repr(sorted(fixed.items())), (fixed, along, []))[2].append(point)
    found = []
    for fixed, along, points in curves.values():
        points.sort(key=lambda point, along=along: point.settings.get(along, 0.0))
        found.append(Curve(fixed, along, tuple(_point(point) for point in points)))
    return found


def _point(point: FrontierPoint) -> Point:
    return Point(
        point.settings,
        point.entropy.mean,
        point.log_ppl.mean,
        point.entropy.standard_error,
        point.log_ppl.standard_error,
    )


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
        legend(axes)
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
        legend(axes)
        return png(figure)


def mean_of(value: Number) -> float:
    """The number behind a value; nan where there is none."""
    if value is None:
        return float("nan")
    return value.mean if isinstance(value, Estimate) else float(value)


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


def shared_legend(figure: "Figure", axes: "Axes") -> None:
    """Below all axes, from the entries of one of them."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=min(4, len(once)))
