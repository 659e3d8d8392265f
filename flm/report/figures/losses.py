"""Figures of losses: over a training run, along the clock tau, and the parts of a bound along t."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from flm.report.figures.axes import DASHES, line, shared_legend, without_explosions
from flm.report.figures.plotting import MARKERS, canvas, legend
from flm.report.kinds.likelihood import Likelihood
from flm.report.kinds.training import LOSS, Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 600  # the most of a curve, which has fewer pixels
GENERATED = {
    "gen/entropy_nats": "entropy within a sample, nats",
    "gen/ngram_ce_nats": "cross-entropy under 3-grams, nats",
    "gen/token_js_bits": "token frequencies against real text, bits",
    "gen/distinct_tokens": "different tokens in a sample",
}


def learning_figure(trainings: Sequence[Training], colours: Mapping[str, str]) -> "Figure":
    """Training loss, and validation loss with markers, by optimiser steps."""
    figure, axes = canvas(8.4, 3.9)
    shown: list[float] = []
    for run in trainings:
        label, colour = run.source.label, colours[run.source.label]
        trained = thinned(run.metrics.series.get(LOSS, ()))
        line(axes, trained, color=colour, linewidth=0.9, alpha=0.55, label=f"{label}, training")
        shown += [value for _, value in trained]
        if run.validated is not None:
            measured = thinned(run.metrics.series[run.validated])
            line(axes, measured, color=colour, marker="o", markersize=3.5, label=f"{label}, validation")
            shown += [value for _, value in measured]
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel("nats per token")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    without_explosions(axes, shown)
    legend(axes)
    return figure


def learning_rate_figure(trainings: Sequence[Training]) -> "Figure":
    """The last validation loss of runs that differ in learning rate, a line for each optimiser."""
    figure, axes = canvas(6.4, 3.6)
    found = by_learning_rate(trainings)
    for index, (name, points) in enumerate(found.items()):
        line(axes, points, color=f"C{index}", marker=MARKERS[index % len(MARKERS)], label=name)
    rates = sorted({rate for points in found.values() for rate, _ in points})
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("optim.lr")
    axes.set_ylabel("last validation, nats per token")
    shared_legend(figure, axes)
    return figure


def by_learning_rate(trainings: Sequence[Training]) -> dict[str, list[tuple[float, float]]]:
    """By optimiser: sorted (learning rate, last validation loss) of the runs that have both."""
    found: dict[str, list[tuple[float, float]]] = {}
    for run in trainings:
        optim = run.source.training.get("optim")
        if run.validated is None or not isinstance(optim, Mapping) or not isinstance(optim.get("lr"), int | float):
            continue
        name = str(optim.get("_target_", "")).rpartition(".")[2]
        name += f", Muon on {optim['muon_on']}" if "muon_on" in optim else ""
        found.setdefault(name, []).append((float(optim["lr"]), run.metrics.series[run.validated][-1][1]))
    return {name: sorted(points) for name, points in sorted(found.items())}


def generation_figure(trainings: Sequence[Training], colours: Mapping[str, str]) -> "Figure":
    """Measures of samples drawn during training: a panel for each measure, and a marker for each number of steps."""
    names = [name for name in GENERATED if any(generated(run, name) for run in trainings)]
    rows, columns = (1, len(names)) if len(names) < 4 else (2, 2)
    figure, axes = canvas(8.4, 2.9 * rows, rows, columns, squeeze=False)
    steps = sorted({count for run in trainings for name in names for count in generated(run, name)})
    for ax, name in zip(axes.flat, names, strict=True):
        shown: list[float] = []
        for run in trainings:
            for count, points in generated(run, name).items():
                look = steps.index(count)
                label = f"{run.source.label}, {count} step{'s' * (count != 1)}"
                style = {"marker": MARKERS[look % len(MARKERS)], "linestyle": DASHES[look % len(DASHES)], "markersize": 3.5}
                line(ax, thinned(points), color=colours[run.source.label], label=label, **style)
                shown += [value for _, value in points]
        ax.set_title(GENERATED[name])
        ax.set_xlabel("optimiser steps")
        ax.locator_params(axis="x", nbins=4)
        ax.xaxis.set_major_formatter("{x:,.0f}")
        without_explosions(ax, shown)
    shared_legend(figure, axes.flat[0])
    return figure


def generated(run: Training, name: str) -> dict[int, tuple[tuple[int, float], ...]]:
    """A measure's series by number of sampling steps. The log calls them "<name>_1_step", "<name>_8_steps", ...."""
    found = {}
    for logged, points in run.metrics.series.items():
        count = logged.removeprefix(f"{name}_").removesuffix("s").removesuffix("_step")
        if logged.startswith(f"{name}_") and count.isdecimal():
            found[int(count)] = points
    return dict(sorted(found.items()))


def cross_entropy_figure(trainings: Sequence[Training], colours: Mapping[str, str]) -> "Figure":
    """Validation loss by tau, and that of the best decoder without context. The gap between them is the gain from context."""
    figure, axes = canvas(8.4, 3.9)
    for run in trainings:
        label, colour = run.source.label, colours[run.source.label]
        centres = [((b.low + b.high) / 2, b) for b in run.by_tau]
        own = [(tau, b.value) for tau, b in centres if b.value is not None]
        free = [(tau, b.context_free) for tau, b in centres if b.context_free is not None]
        line(axes, own, color=colour, marker="o", label=label)
        line(axes, free, color=colour, linestyle="--", label=f"{label}, without context")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tau, the clock: 0 noise, 1 data")
    axes.set_ylabel("nats per token")
    legend(axes)
    return figure


def likelihood_figure(likelihoods: Sequence[Likelihood], colours: Mapping[str, str]) -> "Figure":
    """Nats per token summed along t. A line rises at times that contribute to the bound, and ends at the bound."""
    several = len({row.corpus for row in likelihoods}) > 1
    seen: dict[str, int] = {}
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
    return figure


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most POINTS points. If there are more, each of these is a mean of neighbours."""
    if len(points) <= POINTS:
        return [(float(x), y) for x, y in points]
    edges = [index * len(points) // POINTS for index in range(POINTS + 1)]
    groups = [points[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
