"""Groups runs that differ only in their seed as one model, with a name, and takes means over its seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from flm.measures.estimate import Estimate
from flm.report.comparison import Compared, Quality
from flm.report.kinds.likelihood import Likelihood
from flm.report.labels import SEED, in_words
from flm.report.records import Results
from flm.results.kinds import Line, Plot

Value = TypeVar("Value")
Models = Mapping[str, Sequence[str]]  # name: labels of its runs, by seed


def seeds_of(results: Results) -> dict[str, list[tuple[int, str]]]:
    """Groups of runs that differ only in their seed, with at least two seeds: (seed, label of the run) by name of the group.

    The name is that which all runs of the group, and no others, had before labels were told apart. If there is none, it is made
    of the values that differ between groups.
    """
    groups: dict[str, list[tuple[int, str]]] = {}
    for label in results.runs:
        differing = results.differences.get(label, {})
        seed = differing.get(SEED)
        if isinstance(seed, int):
            rest = in_words({key: value for key, value in differing.items() if key != SEED})
            groups.setdefault(rest, []).append((seed, label))
    found = {}
    for rest, runs in groups.items():
        if len(dict(runs)) < 2:
            continue
        names = {results.names.get(label, label) for _, label in runs}
        called = [label for label in results.runs if results.names.get(label, label) in names]
        own = names.pop() if len(names) == 1 and len(called) == len(runs) else ""
        found[own or rest or "all"] = sorted(runs)
    return found


def models_of(results: Results) -> Models:
    """Models in the order of their first runs. A run is a model of its own if no other has another seed, or if runs of its
    group share a seed."""
    groups = {name: runs for name, runs in seeds_of(results).items() if len(dict(runs)) == len(runs)}
    name_of = {label: name for name, runs in groups.items() for _, label in runs}
    found: dict[str, list[str]] = {}
    for label in results.runs:
        found.setdefault(name_of.get(label, label), []).append(label)
    return found


def compared_over_seeds(rows: Sequence[Compared], models: Models) -> list[Compared]:
    """One row per model, with means and standard errors over its seeds. For perplexities, logarithms are averaged."""
    by_label = {row.label: row for row in rows}
    merged = []
    for name, labels in models.items():
        one = [by_label[label] for label in labels]
        if len(one) == 1:
            merged += one
            continue
        speeds = [row.training_tokens_per_second for row in one if row.training_tokens_per_second is not None]
        merged.append(
            Compared(
                label=name,
                algorithm=one[0].algorithm,
                step=max((row.step for row in one if row.step is not None), default=None),
                training_tokens_per_second=sum(speeds) / len(speeds) if speeds else None,
                likelihood=_likelihood([row.likelihood for row in one]),
                quality=_of_all(_quality, [row.quality for row in one]),
                ms_per_sample=_of_all(lambda values: sum(values) / len(values), [row.ms_per_sample for row in one]),
                seeds=len(one),
            )
        )
    return merged


def plots_over_seeds(plots: Sequence[tuple[str, Plot]], models: Models) -> list[tuple[str, Plot]]:
    """The plots with those of a model's runs replaced by one, whose points are means over the seeds.

    Runs whose lines differ in number, label or number of points keep their own plots.
    """
    by_label = dict(plots)
    found = []
    for name, labels in models.items():
        there = [(label, by_label[label]) for label in labels if label in by_label]
        shapes = {tuple((line.label, len(line.x)) for line in plot.lines) for _, plot in there}
        if len(there) < 2 or len(shapes) > 1:
            found += there
            continue
        lines = zip(*(plot.lines for _, plot in there), strict=True)
        found.append((name, replace(there[0][1], lines=tuple(map(_mean_line, lines)))))
    return found


def _of_all(merge: Callable[[list[Value]], Value], seeds: Sequence[Mapping[int, Value]]) -> dict[int, Value]:
    """Merged values for each number of steps that all seeds have."""
    return {steps: merge([one[steps] for one in seeds]) for steps in seeds[0] if all(steps in one for one in seeds)}


def _quality(seeds: list[Quality]) -> Quality:
    logs = Estimate.of([math.log(one.ppl) if one.ppl > 0 else math.nan for one in seeds])
    ppl, entropy = math.exp(logs.mean), sum(one.entropy_nats for one in seeds) / len(seeds)
    return Quality(ppl, entropy, all(one.reached for one in seeds), ppl * (logs.standard_error or 0.0))


def _likelihood(seeds: Sequence[Likelihood | None]) -> Likelihood | None:
    found = [one for one in seeds if one is not None]
    if len(found) < len(seeds):
        return None
    means: dict[str, float | None] = {}
    for key in ("perplexity", "bits_per_byte", "bits_per_character", "monte_carlo_error"):
        values = [getattr(one, key) for one in found]
        means[key] = None if None in values else sum(values) / len(values)
    return replace(found[0], nats_per_token=Estimate.of([one.nats_per_token.mean for one in found]), **means)


def _mean_line(lines: Sequence[Line]) -> Line:
    if len(set(lines)) == 1:
        return lines[0]
    x, y = (tuple(sum(at) / len(at) for at in zip(*(getattr(one, axis) for one in lines), strict=True)) for axis in "xy")
    return replace(lines[0], x=x, y=y)
