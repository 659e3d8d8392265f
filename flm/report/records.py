"""What result files say, as plain records: the report's view of samples, sweeps, films, likelihoods and training runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flm.measures.estimate import Estimate

Number = float | Estimate | None


@dataclass(frozen=True)
class Source:
    """Where a result came from.

    Attributes:
        label: name of the run in figures.
        algorithm, data: in a word or a few; None where the file does not say.
        step: optimiser steps the model was trained for; None where not known.
        sha256: of the checkpoint file.
        command: as typed, in one line.
        content: the whole file.
    """

    path: Path
    kind: str
    label: str
    algorithm: str | None
    data: str | None
    step: int | None
    sha256: str | None
    command: str
    content: Mapping[str, Any] = field(repr=False)

    def get(self, key: str) -> Any:
        return self.content.get(key)


@dataclass(frozen=True)
class TextSet:
    """Texts and what was measured on them.

    Attributes:
        steps: of the sampler; None for real text.
        metrics: by name, in the order of the file.
        perplexity: by scorer and protocol; None where nothing could be scored.
        texts: None where the file of texts is missing.
    """

    steps: int | None
    count: int
    metrics: Mapping[str, Number]
    perplexity: Mapping[str, float | None]
    texts: tuple[str, ...] | None
    ms_per_sample: float | None = None
    tokens_per_second: float | None = None
    network_evaluations: int | None = None


@dataclass(frozen=True)
class Samples:
    source: Source
    generated: tuple[TextSet, ...]  # by rising number of steps
    real: TextSet | None


@dataclass(frozen=True)
class FrontierPoint:
    settings: Mapping[str, Any]
    entropy: Estimate  # nats
    log_ppl: Estimate  # nats per token
    ms_per_sample: float | None = None


@dataclass(frozen=True)
class Frontier:
    """A sweep.

    Attributes:
        along: the setting a curve runs along, for each run in the sweep.
        matched: rows of flm.measures.frontier.frontier_table.
    """

    source: Source
    scorer: str
    along: Mapping[str, str]
    points: tuple[FrontierPoint, ...]
    real: tuple[Estimate, Estimate] | None  # entropy, log perplexity
    matched: tuple[Mapping[str, Any], ...]

    def run_of(self, settings: Mapping[str, Any]) -> str:
        """The run of a point or row; where it is the whole file's, by the label that tells the file from others."""
        run = settings.get("run")
        return self.source.label if run is None or run == self.source.get("label") else str(run)

    @property
    def runs(self) -> list[str]:
        return list(dict.fromkeys(self.run_of(point.settings) for point in self.points))


@dataclass(frozen=True)
class Frame:
    tau: float
    tokens: tuple[str, ...]
    probability: tuple[float, ...]  # of each shown token, [0, 1]
    given: tuple[bool, ...]


@dataclass(frozen=True)
class Film:
    source: Source
    steps: int
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class Bucket:
    """A part [low, high] of an axis with a value of a model (and of the best decoder without context); None: not measured."""

    low: float
    high: float
    value: float | None
    context_free: float | None


@dataclass(frozen=True)
class Likelihood:
    """One corpus under one model.

    Attributes:
        variant: which of the model's bounds; "" where there is but one.
        bound: what the number is, in words: exact, or the sort of upper bound.
        nats_per_token: over sequences.
        monte_carlo_error: of the mean over draws, nats per token; None where not known.
        parts: nats per token by part of the bound, None where no draw fell; empty where nothing is told apart.
        spans: (low, high, nats per token) of those parts that lie on the axis of physical time t; low = high for a point.
    """

    source: Source
    corpus: str
    variant: str
    bound: str
    nats_per_token: Estimate
    monte_carlo_error: float | None
    perplexity: float
    bits_per_byte: float | None
    bits_per_character: float | None
    parts: Mapping[str, float | None]
    spans: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Answers:
    """What was written where a text or a program had something missing, scored.

    Attributes:
        steps: of the sampler; in words where no model wrote.
        options: of the sampler.
        asked: prompts or problems.
        samples: answers to each.
        scores: by name, in the order of the file; shares are in [0, 1].
    """

    source: Source
    steps: int | str
    options: Mapping[str, Any]
    asked: int
    samples: int
    scores: Mapping[str, Number]


@dataclass(frozen=True)
class Training:
    """A training run, from run.json and metrics/version_*/metrics.csv beside it.

    Attributes:
        measure: what the loss in `by_tau` is, with unit.
        by_tau: the last validation along the clock; empty for a model without a clock or before any validation.
        tokens_per_second: median over the log of the last start of the run that has one; None where nothing was logged.
    """

    source: Source
    measure: str | None
    by_tau: tuple[Bucket, ...]
    tokens_per_second: float | None


@dataclass
class Results:
    samples: list[Samples] = field(default_factory=list)
    frontiers: list[Frontier] = field(default_factory=list)
    films: list[Film] = field(default_factory=list)
    likelihoods: list[Likelihood] = field(default_factory=list)
    responses: list[Answers] = field(default_factory=list)  # to prompts
    programs: list[Answers] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
