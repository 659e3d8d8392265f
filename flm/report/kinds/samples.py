"""Reads results.json of mode=sample_eval, with the files of texts beside it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from flm.handed_in import regular_file
from flm.report.frontier.figure import scorer_name
from flm.results.files import Content, Count, EstimateContent, Real, Text, Whole, checked
from flm.results.kinds import KeyNumber, Number, Reading, ResultKind, Source

TEXTS = 50  # the most that are read of each file
LINE_BYTES = 1 << 20  # the most of one text with its tokens
MEASURES = 200


@dataclass(frozen=True)
class TextSet:
    """Texts and their measures.

    Attributes:
        steps: of the sampler; None: real text.
        metrics: by name, in the order of the file.
        perplexity: by scorer and protocol; None: nothing could be scored.
        texts: the first ones; None: the file of texts is missing.
    """

    steps: int | None
    count: int
    metrics: Mapping[str, Number]
    perplexity: Mapping[str, float | None]
    texts: tuple[str, ...] | None
    ms_per_sample: float | None = None
    tokens_per_second: float | None = None
    network_evaluations: float | None = None


@dataclass(frozen=True)
class Samples:
    source: Source
    generated: tuple[TextSet, ...]  # by rising number of steps
    real: TextSet | None


class _Scored(Content):
    ppl: Real | None
    name: Text | None = None
    scorer: Text | None = None
    revision: Text | None = None
    protocol: Text | None = None


class _TextSet(Content):
    count: Count
    file: Text
    metrics: Annotated[dict[Text, Any], Field(max_length=MEASURES)]
    steps: Count | None = None
    ms_per_sample: Real | None = None
    tokens_per_second: Real | None = None
    network_evaluations: Whole | Real | None = None


class _Samples(Content):
    generated: Annotated[dict[Text, _TextSet], Field(max_length=MEASURES)]
    real: _TextSet | None = None


class _Judged(Content):
    gen_ppl: Annotated[list[_Scored], Field(max_length=20)] | None = None


def read(source: Source) -> Reading:
    content = checked(_Samples, source.content)
    folder = source.path.parent
    generated = [_text_set(folder, entry) for entry in content.generated.values()]
    generated.sort(key=lambda one: one.steps or 0)
    real = None if content.real is None else _text_set(folder, content.real)
    return Reading(numbers=tuple(_numbers(generated)), records=(Samples(source, tuple(generated), real),))


def _numbers(generated: list[TextSet]) -> list[KeyNumber]:
    found = []
    for one in generated:
        setting = f"{one.steps} step{'s' * (one.steps != 1)}"
        found += [
            KeyNumber(f"generative perplexity, {scorer}", setting, ppl, "lower") for scorer, ppl in one.perplexity.items()
        ]
        entropy, judged = one.metrics.get("entropy_nats"), one.metrics.get("ngram_ce_nats")
        found += [KeyNumber("3-gram cross-entropy, nats", setting, judged, "lower")] if judged is not None else []
        found += [KeyNumber("entropy, nats", setting, entropy, None)] if entropy is not None else []
    return found


def _text_set(folder: Path, entry: _TextSet) -> TextSet:
    judged = checked(_Judged, entry.metrics).gen_ppl or []
    measured = {name: _number(name, value) for name, value in entry.metrics.items() if _is_number(value)}
    return TextSet(
        steps=entry.steps,
        count=entry.count,
        metrics=measured,
        perplexity={scorer_name(row.model_dump()): row.ppl for row in judged},
        texts=_texts(folder, entry.file),
        ms_per_sample=entry.ms_per_sample,
        tokens_per_second=entry.tokens_per_second,
        network_evaluations=entry.network_evaluations,
    )


def _is_number(value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or plain or (isinstance(value, Mapping) and "mean" in value)


class _Number(Content):
    value: Whole | Real | EstimateContent | None


def _number(name: str, value: Any) -> Number:
    try:
        found = checked(_Number, {"value": value}).value
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from error
    return found.estimate() if isinstance(found, EstimateContent) else found


def _texts(folder: Path, name: str) -> tuple[str, ...] | None:
    """The first texts of a file; None: there is no such file."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"its texts are in {name}, which is not beside it: only files in its folder are read")
    if not path.exists():
        return None
    texts = []
    try:
        with open(regular_file(path, 1 << 40), "rb") as file:
            for _ in range(TEXTS):
                line = file.readline(LINE_BYTES)
                if not line:
                    break
                if len(line) == LINE_BYTES:
                    raise ValueError(f"a line is longer than {LINE_BYTES:,} bytes")
                if line.strip():
                    text = json.loads(line)["text"]
                    if not isinstance(text, str):
                        raise ValueError("a text is no string")
                    texts.append(text.encode("utf-8", "replace").decode("utf-8"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not lines of JSON with a text each ({error})") from error
    return tuple(texts)


KIND = ResultKind(files=("results.json",), read=read)
