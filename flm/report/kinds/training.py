"""Reads run.json of a training run, with the log of metrics and the status beside it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from flm.report.kinds.metrics import Metrics, read_metrics
from flm.results.files import Content, Count, Text, checked, read_json
from flm.results.kinds import KeyNumber, Reading, ResultKind, Source

_BUCKET = re.compile(r"val/(.+)_tau_(\d\.\d)-(\d\.\d)")
_CONTEXT_FREE = "context_free_ce_nats"
LOSS = "train/loss_nats_per_token"


@dataclass(frozen=True)
class Bucket:
    """Values of a model, and of the best decoder without context, on a part [low, high] of an axis; None: not measured."""

    low: float
    high: float
    value: float | None
    context_free: float | None


@dataclass(frozen=True)
class Status:
    """The status of a run.

    Attributes:
        word: running, finished, stopped, failed, or unknown.
        step, max_steps: optimiser steps done and wanted; None: not known.
        reason: why it ended, in a line; "": not known.
    """

    word: str
    step: int | None
    max_steps: int | None
    reason: str = ""


@dataclass(frozen=True)
class Training:
    """A training run.

    Attributes:
        measure: name of the loss in `by_tau`, with its unit.
        by_tau: the last validation by tau; empty for a model without a clock, or before any validation.
        validated: name in the log of the validation loss per token; None: there is none.
    """

    source: Source
    status: Status
    metrics: Metrics
    measure: str | None
    by_tau: tuple[Bucket, ...]
    validated: str | None

    @property
    def tokens_per_second(self) -> float | None:
        return self.metrics.tokens_per_second


class _Status(Content):
    status: Annotated[str, Field(pattern="^(running|finished|stopped|failed)$")]
    step: Count
    max_steps: Annotated[int, Field(ge=-1)] | None = None
    reason: Text | None = None


def read(source: Source) -> Reading:
    metrics = read_metrics(source.path.parent)
    measure, by_tau = _along_the_clock(metrics.series)
    names = sorted(name for name in metrics.series if name.startswith("val/") and name.endswith("_nats_per_token"))
    validated = next((name for name in names if _CONTEXT_FREE not in name), None)
    run = Training(source, _status(source, metrics), metrics, measure, by_tau, validated)
    numbers = [] if validated is None else [
        KeyNumber(in_words(validated.removeprefix("val/")), "last validation", metrics.series[validated][-1][1], "lower")
    ]  # fmt: skip
    return Reading(numbers=tuple(numbers), records=(run,))


def in_words(name: str) -> str:
    """A metric's name in words: "denoising_ce_nats_per_token" is "denoising cross-entropy, nats per token"."""
    words = name.replace("_", " ").replace(" ce nats", " cross-entropy, nats").replace("loss nats", "loss, nats")
    return words.replace("nll nats", "NLL, nats").replace("entropy nats", "entropy, nats")


def _status(source: Source, metrics: Metrics) -> Status:
    path = source.path.parent / "status.json"
    wanted = source.training.get("trainer") or {}
    most = wanted.get("max_steps") if isinstance(wanted, Mapping) else None
    most = most if isinstance(most, int) and most > 0 else None
    if path.exists():
        try:
            found = checked(_Status, read_json(path))
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from error
        step = found.step
        if found.status == "running":  # the file was written at the start
            step = max(step, metrics.steps or 0)
        return Status(found.status, step, found.max_steps if found.max_steps != -1 else None, found.reason or "")
    if most is not None and metrics.steps is not None and metrics.steps >= most:
        return Status("finished", metrics.steps, most)
    return Status("unknown", metrics.steps, most)


def _along_the_clock(series: Mapping[str, tuple[tuple[int, float], ...]]) -> tuple[str | None, tuple[Bucket, ...]]:
    """The name of the loss by tau, and its values at the last validation."""
    last: dict[tuple[str, str, str], tuple[int, float]] = {}
    for name, points in series.items():
        if match := _BUCKET.fullmatch(name):
            last[match.groups()] = points[-1]
    measures = sorted({name for name, _, _ in last} - {_CONTEXT_FREE})
    if not measures:
        return None, ()
    measure, newest = measures[0], max(step for step, _ in last.values())
    values = {key: value for key, (step, value) in last.items() if step == newest}
    edges = sorted({(low, high) for _, low, high in values})
    return measure, tuple(
        Bucket(float(a), float(b), values.get((measure, a, b)), values.get((_CONTEXT_FREE, a, b))) for a, b in edges
    )


KIND = ResultKind(files=("run.json",), read=read)
