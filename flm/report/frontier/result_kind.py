"""Reads frontier.json of mode=frontier: sweeps of one or several checkpoints over settings of the sampler."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from flm.measures.estimate import Estimate
from flm.report.frontier.curves import Curve, Point, curves
from flm.report.frontier.figure import scorer_name
from flm.report.labels import run_label
from flm.results.files import Content, Count, EstimateContent, Real, Scalar, Text, checked
from flm.results.kinds import KeyNumber, Reading, ResultKind, Source

DATA = "data"  # the entropy of real text, among the targets of a sweep
_Settings = Annotated[dict[Text, Scalar], Field(max_length=50)]


@dataclass(frozen=True)
class Frontier:
    """A sweep by one scorer.

    Attributes:
        curves: each along one setting; the others include the `run`, by its label in the report.
        ms_per_sample: settings and milliseconds of each point.
        real: entropy and log perplexity of real text.
        matched: rows of `flm.report.frontier.curves.frontier_table`, with the run's label in the report.
        models: the checkpoint of each run.
        nulls: curves of texts that no model wrote.
        changes: sentences on pairs of runs whose order depends on the policy.
    """

    source: Source
    scorer: str
    curves: tuple[Curve, ...]
    ms_per_sample: tuple[tuple[Mapping[str, Any], float], ...]
    real: tuple[Estimate, Estimate] | None
    matched: tuple[Mapping[str, Any], ...]
    models: Mapping[str, "Swept"]
    nulls: tuple[Curve, ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def runs(self) -> list[str]:
        return list(dict.fromkeys(str(curve.settings["run"]) for curve in self.curves))


@dataclass(frozen=True)
class Swept:
    """A model in a sweep over several."""

    algorithm: str | None
    step: int | None
    sha256: str | None


class _Point(Content):
    settings: _Settings
    entropy_nats: EstimateContent
    log_ppl: EstimateContent
    ms_per_sample: Real | None = None
    repeats_more: bool | None = None

    def point(self, settings: Mapping[str, Any]) -> Point:
        entropy, judged = self.entropy_nats, self.log_ppl
        errors = entropy.standard_error, judged.standard_error
        return Point(settings, entropy.mean, judged.mean, *errors, bool(self.repeats_more))


class _Real(Content):
    entropy_nats: EstimateContent
    log_ppl: EstimateContent


class _Scorer(Content):
    name: Text
    revision: Text | None = None
    protocol: Text | None = None


class _Checkpoint(Content):
    algorithm: Text | None = None
    step: Count | None = None
    sha256: Text | None = None


class _Row(Content):
    target: Text
    target_entropy_nats: Real
    ppl: Real | None
    closest_ppl: Real | None
    closest_entropy_nats: Real | None


class _Frontier(Content):
    points: Annotated[list[_Point], Field(max_length=2000)]
    matched: Annotated[list[dict[Text, Scalar]], Field(max_length=2000)] = []
    nulls: Annotated[list[_Point], Field(max_length=200)] = []
    ranking_changes: Annotated[list[Text], Field(max_length=2000)] = []
    real: _Real | None = None
    scorer: _Scorer
    label: Text | None = None
    checkpoints: Annotated[dict[Text, _Checkpoint], Field(max_length=200)] = {}


def read(source: Source) -> Reading:
    content = checked(_Frontier, source.content)

    def named(settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings with the label of the run in the report. A run with the file's own label gets the file's label there."""
        run = settings.get("run")
        return {**settings, "run": source.label if run is None or run == content.label else run_label(run)}

    matched = []
    for index, row in enumerate(content.matched):
        try:
            checked(_Row, row)
        except ValueError as error:
            raise ValueError(f"matched.{index}.{error}") from error
        matched.append(named(row))
    by_run: dict[str, list[Point]] = {}
    for point in content.points:
        settings = named(point.settings)
        by_run.setdefault(settings["run"], []).append(point.point(settings))
    drawn = [curve for run, points in by_run.items() for curve in curves(points, _along(points, matched, run))]
    several = source.sha256 is None
    found = Frontier(
        source=source,
        scorer=scorer_name(content.scorer.model_dump()),
        curves=tuple(drawn),
        ms_per_sample=tuple((named(p.settings), p.ms_per_sample) for p in content.points if p.ms_per_sample is not None),
        real=content.real and (content.real.entropy_nats.estimate(), content.real.log_ppl.estimate()),
        matched=tuple(matched),
        models={run_label(name): Swept(m.algorithm, m.step, m.sha256) for name, m in content.checkpoints.items() if several},
        nulls=tuple(curves([point.point(point.settings) for point in content.nulls], "size")),
        changes=tuple(content.ranking_changes),
    )
    return Reading(numbers=tuple(_numbers(found)), records=(found,))


def _along(points: list[Point], matched: list[Mapping[str, Any]], run: str) -> str:
    """What a run's curves run along: named by its rows, else temperature if there is one."""
    for row in matched:
        swept = [key.removeprefix("closest_") for key in row if row["run"] == run and key.startswith("closest_")]
        for name in swept:
            if name not in ("ppl", "entropy_nats"):
                return name
    return "temperature" if all("temperature" in point.settings for point in points) else "steps"


def _numbers(frontier: Frontier) -> list[KeyNumber]:
    """Only of a sweep of one model: numbers belong to the file's run."""
    if frontier.runs != [frontier.source.label]:
        return []
    fixed = {"run", "target", "target_entropy_nats", "ppl", "log_ppl", "log_ppl_error", "crossings"}
    fixed |= {curve.along for curve in frontier.curves}
    found = []
    for row in frontier.matched:
        rest = [f"{key} {value}" for key, value in row.items() if key not in fixed and not key.startswith("closest_")]
        if row["target"] == DATA and row["ppl"] is not None:
            name = f"perplexity at the entropy of real text, {frontier.scorer}"
            found.append(KeyNumber(name, ", ".join(rest), row["ppl"], "lower"))
    return found


KIND = ResultKind(files=("frontier.json",), read=read)
