"""Models side by side: what each cost to train, its likelihood, and what it writes in how many steps, one row a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flm.measures.estimate import Estimate
from flm.report.records import Frontier, Likelihood, Number, Results
from flm.report.tables import Cell, Table

TARGET = "data"  # the entropy of real text, among the targets of a sweep


@dataclass(frozen=True)
class Quality:
    """What a model writes in one number of steps.

    Attributes:
        ppl: at the entropy of real text if `reached`, else of the setting that came closest.
        entropy_nats: where `ppl` was read.
    """

    ppl: float
    entropy_nats: float
    reached: bool


@dataclass(frozen=True)
class Compared:
    """A model among others.

    Attributes:
        step: optimiser steps it was trained for.
        training_tokens_per_second: as logged by its training.
        likelihood: its bound or exact value on the first corpus it was scored on; None where it has none.
        quality, ms_per_sample: by number of sampling steps.
    """

    label: str
    algorithm: str | None
    step: int | None
    training_tokens_per_second: float | None
    likelihood: Likelihood | None
    quality: Mapping[int, Quality]
    ms_per_sample: Mapping[int, float]


def compared(results: Results) -> list[Compared]:
    """A row for each run, in the order of the report; perplexities are those of the first sweep's scorer."""
    frontiers = [one for one in results.frontiers if one.scorer == results.frontiers[0].scorer]
    swept = {run: frontier for frontier in frontiers for run in frontier.runs}
    in_sweeps = {id(frontier.source): frontier.runs for frontier in results.frontiers}
    labels = dict.fromkeys(run for source in results.sources for run in in_sweeps.get(id(source), [source.label]))
    rows = []
    for label in labels:
        sources = [source for source in results.sources if source.label == label]
        quality = _quality(swept[label], label) if label in swept else {}
        rows.append(
            Compared(
                label=label,
                algorithm=next((one.algorithm for one in sources if one.algorithm), _swept(swept, label, "algorithm")),
                # a log may end before the run does, and a checkpoint says
                step=max((one.step for one in sources if one.step), default=_swept(swept, label, "step")),
                training_tokens_per_second=next(
                    (run.tokens_per_second for run in results.trainings if run.source.label == label), None
                ),
                likelihood=_likelihood([row for row in results.likelihoods if row.source.label == label]),
                quality=quality,
                ms_per_sample=_ms_per_sample(results, swept.get(label), label),
            )
        )
    return rows


def comparison_table(rows: Sequence[Compared]) -> Table:
    """Everything in one table; a perplexity that is not at the entropy of real text stands with its own entropy."""
    by_quality = sorted({steps for row in rows for steps in row.quality})
    by_speed = sorted({steps for row in rows for steps in row.ms_per_sample})
    columns = ("run", "algorithm", "steps trained", "training tokens per second", "bits per character", "which is")
    columns += tuple(f"ppl, {_steps(steps)}" for steps in by_quality)
    columns += tuple(f"ms per sample, {_steps(steps)}" for steps in by_speed)
    cells = []
    for row in rows:
        found = row.likelihood
        measured = (None, None) if found is None else (_bits(found), found.bound)
        speeds = (row.ms_per_sample.get(steps) for steps in by_speed)
        texts = (_quality_cell(row.quality.get(steps)) for steps in by_quality)
        cells.append((row.label, row.algorithm, row.step, row.training_tokens_per_second, *measured, *texts, *speeds))
    return Table("comparison", columns, tuple(cells)).without_empty_columns()


def real_level(results: Results) -> tuple[Estimate, Estimate] | None:
    """Entropy and log perplexity of real text under the scorer of `compared`; None where no sweep has it."""
    frontiers = [one for one in results.frontiers if one.scorer == results.frontiers[0].scorer]
    return next((one.real for one in frontiers if one.real is not None), None)


def _quality(frontier: Frontier, label: str) -> dict[int, Quality]:
    """By steps: of several settings beside steps, the one with the lowest perplexity at the target, else the closest."""
    found: dict[int, list[Quality]] = {}
    for row in frontier.matched:
        if frontier.run_of(row) != label or row["target"] != TARGET or not isinstance(row.get("steps"), int):
            continue
        if row["ppl"] is not None:
            one = Quality(row["ppl"], row["target_entropy_nats"], True)
        else:
            one = Quality(row["closest_ppl"], row["closest_entropy_nats"], False)
        distance = abs(one.entropy_nats - row["target_entropy_nats"])
        found.setdefault(row["steps"], []).append((not one.reached, distance, one.ppl, one))
    return {steps: min(found[steps], key=lambda ranked: ranked[:3])[3] for steps in sorted(found)}


def _ms_per_sample(results: Results, frontier: Frontier | None, label: str) -> dict[int, float]:
    """From measured samples; where there are none, the fastest setting of the sweep."""
    timed = {
        one.steps: one.ms_per_sample
        for run in results.samples
        if run.source.label == label
        for one in run.generated
        if one.steps is not None and one.ms_per_sample is not None
    }
    swept: dict[int, float] = {}
    for point in frontier.points if frontier is not None else ():
        steps, cost = point.settings.get("steps"), point.ms_per_sample
        if frontier.run_of(point.settings) == label and isinstance(steps, int) and cost is not None:
            swept[steps] = min(cost, swept.get(steps, cost))
    return swept | timed


def _likelihood(rows: Sequence[Likelihood]) -> Likelihood | None:
    """Of several bounds the one that was chosen on training text, else the first."""
    if not rows:
        return None
    first = [row for row in rows if row.corpus == rows[0].corpus]
    chosen = first[0].source.content["likelihood"].get("chosen")
    return next((row for row in first if row.variant == chosen), first[0])


def _swept(swept: Mapping[str, Frontier], label: str, key: str):
    """Of a model that is known from a sweep over several only."""
    entry = ((swept[label].source.get("checkpoints") or {}) if label in swept else {}).get(label) or {}
    return entry.get(key)


def _quality_cell(quality: Quality | None) -> Cell:
    if quality is None or quality.reached:
        return None if quality is None else quality.ppl
    return f"({quality.ppl:.1f} at {quality.entropy_nats:.2f} nats)"


def _bits(likelihood: Likelihood) -> Number:
    """Bits per character with their standard error, which is as large a part of them as of the nats."""
    bits, nats = likelihood.bits_per_character, likelihood.nats_per_token
    if bits is None or nats.standard_error is None or nats.mean <= 0:
        return bits
    return Estimate(bits, bits * nats.standard_error / nats.mean, nats.count)


def _steps(steps: int) -> str:
    return f"{steps} step{'s' * (steps > 1)}"
