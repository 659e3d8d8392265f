"""Models side by side, one row each: training cost, likelihood, and the quality and time of samples by number of steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flm.measures.estimate import Estimate
from flm.report.frontier.result_kind import DATA, Frontier, Swept
from flm.report.kinds.likelihood import Likelihood
from flm.report.kinds.samples import Samples
from flm.report.kinds.training import Training
from flm.report.records import Results
from flm.results.kinds import Cell, Table


@dataclass(frozen=True)
class Quality:
    """The quality of a model's samples for one number of steps.

    Attributes:
        ppl: perplexity at the entropy of real text if `reached`, else of the setting closest to that entropy.
        entropy_nats: entropy at which `ppl` was read.
        ppl_error: standard error over seeds; None: there is one seed.
    """

    ppl: float
    entropy_nats: float
    reached: bool
    ppl_error: float | None = None


@dataclass(frozen=True)
class Compared:
    """The numbers of one model.

    Attributes:
        step: optimiser steps it was trained for.
        training_tokens_per_second: as its training logged it.
        likelihood: its bound or exact value on the first corpus it was scored on; None: it has none.
        quality, ms_per_sample: by number of sampling steps.
        seeds: number of seeds over which the numbers are means.
    """

    label: str
    algorithm: str | None
    step: int | None
    training_tokens_per_second: float | None
    likelihood: Likelihood | None
    quality: Mapping[int, Quality]
    ms_per_sample: Mapping[int, float]
    seeds: int = 1


def compared(results: Results) -> list[Compared]:
    """A row for each run, in the order of the report. Only sweeps with the first one's scorer and text give perplexities."""
    swept = {run: frontier for frontier in _of_one_scorer(results) for run in frontier.runs}
    rows = []
    for label in results.runs:
        sources = [source for source in results.sources if source.label == label]
        trained = [run for run in results.of(Training) if run.source.label == label]
        frontier = swept.get(label)
        model = frontier.models.get(label, _UNKNOWN) if frontier is not None else _UNKNOWN
        steps = [source.step for source in sources if source.step] + [one.status.step for one in trained if one.status.step]
        rows.append(
            Compared(
                label=label,
                algorithm=next((one.algorithm for one in sources if one.algorithm), model.algorithm),
                step=max(steps, default=model.step),  # a checkpoint may be older or newer than the log
                training_tokens_per_second=next((run.tokens_per_second for run in trained), None),
                likelihood=_likelihood([row for row in results.of(Likelihood) if row.source.label == label]),
                quality=_quality(frontier, label) if frontier is not None else {},
                ms_per_sample=_ms_per_sample(results.of(Samples), frontier, label),
            )
        )
    return rows


def comparison_table(rows: Sequence[Compared]) -> Table:
    """All numbers in one table.

    A perplexity that is not at the entropy of real text is shown with its own entropy. Bits per character are shown with their
    corpus if there are several corpora.
    """
    by_quality = sorted({steps for row in rows for steps in row.quality})
    by_speed = sorted({steps for row in rows for steps in row.ms_per_sample})
    columns = ("run", "algorithm", "seeds", "steps trained", "training tokens per second", "bits per character", "which is")
    columns += tuple(f"ppl, {_steps(steps)}" for steps in by_quality)
    columns += tuple(f"ms per sample, {_steps(steps)}" for steps in by_speed)
    corpora = {row.likelihood.corpus for row in rows if row.likelihood is not None}
    cells = []
    for row in rows:
        found = row.likelihood
        which = found and (f"{found.bound}, {found.corpus}" if len(corpora) > 1 else found.bound)
        measured = (found and found.with_error(found.bits_per_character), which)
        speeds = (row.ms_per_sample.get(steps) for steps in by_speed)
        texts = (_quality_cell(row.quality.get(steps)) for steps in by_quality)
        seeds = row.seeds if row.seeds > 1 else None
        cells.append((row.label, row.algorithm, seeds, row.step, row.training_tokens_per_second, *measured, *texts, *speeds))
    return Table("comparison", columns, tuple(cells)).without_empty_columns()


def real_level(results: Results) -> tuple[Estimate, Estimate] | None:
    """Entropy and log perplexity of real text under the scorer of `compared`; None: no sweep has it."""
    return next((one.real for one in _of_one_scorer(results) if one.real is not None), None)


_UNKNOWN = Swept(None, None, None)


def _of_one_scorer(results: Results) -> list[Frontier]:
    """The sweeps with the scorer and the text of the first one. The text matters: a 3-gram judge is fitted on it, and models
    are compared at its entropy."""
    found = results.of(Frontier)
    return [one for one in found if (one.scorer, one.source.data) == (found[0].scorer, found[0].source.data)]


def _quality(frontier: Frontier, label: str) -> dict[int, Quality]:
    """By number of steps: the setting with the lowest perplexity at the target, else the setting closest to the target."""
    found: dict[int, list[tuple[bool, float, float, Quality]]] = {}
    for row in frontier.matched:
        if row["run"] != label or row["target"] != DATA or not isinstance(row.get("steps"), int):
            continue
        if row["ppl"] is not None:
            one = Quality(row["ppl"], row["target_entropy_nats"], True)
        elif row["closest_ppl"] is not None and row["closest_entropy_nats"] is not None:
            one = Quality(row["closest_ppl"], row["closest_entropy_nats"], False)
        else:
            continue
        distance = abs(one.entropy_nats - row["target_entropy_nats"])
        found.setdefault(row["steps"], []).append((not one.reached, distance, one.ppl, one))
    return {steps: min(found[steps], key=lambda ranked: ranked[:3])[3] for steps in sorted(found)}


def _ms_per_sample(samples: Sequence[Samples], frontier: Frontier | None, label: str) -> dict[int, float]:
    """By number of steps: from measured samples, else of the fastest setting of the sweep."""
    timed = {
        one.steps: one.ms_per_sample
        for run in samples
        if run.source.label == label
        for one in run.generated
        if one.steps is not None and one.ms_per_sample is not None
    }
    swept: dict[int, float] = {}
    for settings, cost in frontier.ms_per_sample if frontier is not None else ():
        steps = settings.get("steps")
        if settings["run"] == label and isinstance(steps, int):
            swept[steps] = min(cost, swept.get(steps, cost))
    return swept | timed


def _likelihood(rows: Sequence[Likelihood]) -> Likelihood | None:
    """The chosen bound on the first corpus."""
    return next((row for row in rows if row.corpus == rows[0].corpus and row.is_chosen), None)


def _quality_cell(quality: Quality | None) -> Cell:
    if quality is None:
        return None
    if quality.reached:
        return quality.ppl if quality.ppl_error is None else Estimate(quality.ppl, quality.ppl_error, 0)
    return f"({quality.ppl:.1f} at {quality.entropy_nats:.2f} nats)"


def _steps(steps: int) -> str:
    return f"{steps} step{'s' * (steps > 1)}"
