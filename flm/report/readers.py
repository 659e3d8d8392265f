"""From the content of a result file to records. What is absent or of another shape raises; `result_files` names the file."""

import csv
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from flm.measures.estimate import Estimate
from flm.measures.frontier_figure import scorer_name
from flm.report.records import (
    Answers,
    Bucket,
    Film,
    Frame,
    Frontier,
    FrontierPoint,
    Likelihood,
    Number,
    Samples,
    Source,
    TextSet,
    Training,
)

_BUCKET = re.compile(r"val/(.+)_tau_(\d\.\d)-(\d\.\d)")
_SPAN = re.compile(r"t (\d\.\d+) to (\d\.\d+)")
_POINT = re.compile(r".* at t (\d\.\d+)")
_CONTEXT_FREE = "context_free_ce_nats"
_SPEED = "perf/tokens_per_second"
_RESPONSE_SCORES = {"bleu": "sentence BLEU", "rouge_l": "ROUGE-L", "bert_score": "BERTScore"}


def _estimate(value: Any) -> Number:
    """A number as it is; an object as the estimate it is."""
    if value is None or isinstance(value, int | float):
        return value
    error = value["standard_error"]
    return Estimate(float(value["mean"]), None if error is None else float(error), int(value["count"]))


def _sure_estimate(value: Any) -> Estimate:
    found = _estimate(value)
    if isinstance(found, Estimate):
        return found
    return Estimate(float(found), None, 1)  # type: ignore[arg-type]


def _samples(source: Source) -> list[Samples]:
    generated = [_text_set(source.path.parent, entry, entry["steps"]) for entry in source.content["generated"].values()]
    real = source.get("real")
    by_steps = sorted(generated, key=lambda entry: entry.steps or 0)
    return [Samples(source, tuple(by_steps), None if real is None else _text_set(source.path.parent, real, None))]


def _text_set(folder: Path, entry: Mapping[str, Any], steps: int | None) -> TextSet:
    metrics = dict(entry["metrics"])
    perplexity = {scorer_name(row): row["ppl"] for row in metrics.pop("gen_ppl", None) or []}
    measured = {name: _estimate(value) for name, value in metrics.items() if _is_number(value)}
    return TextSet(
        steps=steps,
        count=entry["count"],
        metrics=measured,
        perplexity=perplexity,
        texts=_texts(folder / entry["file"]),
        ms_per_sample=entry.get("ms_per_sample"),
        tokens_per_second=entry.get("tokens_per_second"),
        network_evaluations=entry.get("network_evaluations"),
    )


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float) or (isinstance(value, Mapping) and "mean" in value)


def _texts(path: Path) -> tuple[str, ...] | None:
    if not path.exists():
        return None
    try:
        rows = path.read_text(encoding="utf-8").split("\n")  # splitlines would break at separators within a text
        return tuple(json.loads(row)["text"] for row in rows if row.strip())
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not lines of JSON with a text each ({error})") from error


def _frontier(source: Source) -> list[Frontier]:
    points = [
        FrontierPoint(
            point["settings"],
            _sure_estimate(point["entropy_nats"]),
            _sure_estimate(point["log_ppl"]),
            point.get("ms_per_sample"),
        )
        for point in source.content["points"]
    ]
    real, matched = source.get("real"), tuple(source.get("matched") or ())
    found = Frontier(
        source=source,
        scorer=scorer_name(source.content["scorer"]),
        along={},
        points=tuple(points),
        real=None if real is None else (_sure_estimate(real["entropy_nats"]), _sure_estimate(real["log_ppl"])),
        matched=matched,
    )
    along = {}
    for row in matched:
        swept = [key.removeprefix("closest_") for key in row if key.startswith("closest_")]
        along[found.run_of(row)] = next(key for key in swept if key not in ("ppl", "entropy_nats"))
    return [replace(found, along=along)]


def _film(source: Source) -> list[Film]:
    frames = []
    for frame in source.content["frames"]:
        tokens, probability = tuple(frame["tokens"]), tuple(map(float, frame["probability"]))
        given = tuple(frame.get("given") or [False] * len(tokens))
        if not len(tokens) == len(probability) == len(given):
            raise ValueError(f"{source.path}: a frame has {len(tokens)} tokens but {len(probability)} probabilities")
        frames.append(Frame(float(frame["tau"]), tokens, probability, given))
    if not frames:
        raise ValueError(f"{source.path}: a film without frames")
    return [Film(source, source.content["steps"], tuple(frames))]


def _likelihood(source: Source) -> list[Likelihood]:
    """One record for each corpus and, where the model has several bounds, each of them."""
    content, found = source.content["likelihood"], []
    for corpus, entry in content["corpora"].items():
        variants = entry["variants"]
        for variant, values in variants.items():
            found_parts = values.get("parts_nats_per_token") or {}
            parts = {name: None if nats is None else float(nats) for name, nats in found_parts.items()}  # None: never drawn
            error = values["standard_error_nats"]
            record = Likelihood(
                source=source,
                # the user's own name for it; "data" is the task's, and says less than the description
                corpus=str(entry.get("corpus") or corpus) if corpus == "data" else str(corpus),
                variant=variant if len(variants) > 1 else "",
                bound=str(content["kind"]),
                nats_per_token=Estimate(float(values["nats_per_token"]), error, values["sequences"]),
                monte_carlo_error=values.get("monte_carlo_error_nats"),
                perplexity=float(values["perplexity"]),
                bits_per_byte=values.get("bits_per_byte"),
                bits_per_character=values.get("bits_per_character"),
                parts=parts,
                spans=_spans(parts),
            )
            found.append(record)
    return found


def _spans(parts: Mapping[str, float | None]) -> tuple[tuple[float, float, float], ...]:
    """Parts named "t 0.100 to 0.200" or "... at t 0.950", along t."""
    spans = []
    for name, nats in parts.items():
        if nats is None:
            continue
        if match := _SPAN.fullmatch(name):
            spans.append((float(match[1]), float(match[2]), nats))
        elif match := _POINT.fullmatch(name):
            spans.append((float(match[1]), float(match[1]), nats))
    return tuple(sorted(spans))


def _responses(source: Source) -> list[Answers]:
    found = []
    for steps, entry in source.content["by_steps"].items():
        scores: dict[str, Number] = {"corpus BLEU": float(entry["corpus_bleu"])}
        for name, value in entry.items():
            if isinstance(value, Mapping):
                kinds = ("mean", "best") if entry["samples"] > 1 else ("mean",)
                title = _RESPONSE_SCORES.get(name, name.replace("_", " "))
                scores |= {title if kind == "mean" else f"{title}, {kind}": _sure_estimate(value[kind]) for kind in kinds}
        options = source.get("options") or {}
        found.append(Answers(source, int(steps), options, entry["prompts"], entry["samples"], scores))
    return found


def _programs(source: Source) -> list[Answers]:
    found = []
    for steps, entry in source.content["by_steps"].items():
        scores: dict[str, Number] = {f"pass@{k}": _sure_estimate(value) for k, value in entry["pass_at"].items()}
        scores |= {f"compiled@{k}": _sure_estimate(value) for k, value in entry["compiled_at"].items()}
        scores["exact match"] = _sure_estimate(entry["exact_match"])
        by = int(steps) if steps.isdigit() else steps
        options = source.get("options") or {}
        found.append(Answers(source, by, options, source.content["problems"], entry["samples"], scores))
    return found


def _training(source: Source) -> list[Training]:
    starts = sorted(source.path.parent.glob("metrics/version_*/metrics.csv"), key=lambda path: _version(path))
    by_start = [_csv_rows(path) for path in starts]
    rows = [row for start in by_start for row in start]
    steps = [int(float(row["step"])) + 1 for row in rows if row.get("step")]
    logged = [[float(row[_SPEED]) for row in start if row.get(_SPEED)] for start in by_start]
    speeds = next((values for values in reversed(logged) if values), [])  # a start of a finished run logs nothing
    measure, buckets = None, ()
    for row in reversed(rows):
        values = {match.groups(): float(value) for key, value in row.items() if value and (match := _BUCKET.fullmatch(key))}
        measures = sorted({name for name, _, _ in values} - {_CONTEXT_FREE})
        if measures:
            measure, edges = measures[0], sorted({(low, high) for _, low, high in values})
            buckets = tuple(
                Bucket(float(a), float(b), values.get((measure, a, b)), values.get((_CONTEXT_FREE, a, b))) for a, b in edges
            )
            break
    trained = replace(source, step=max(steps)) if steps else source
    return [Training(trained, measure, buckets, median(speeds) if speeds else None)]


def _version(path: Path) -> int:
    number = path.parent.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1


def _csv_rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# By kind: what makes records of a file, and where in Results they go.
READERS: dict[str, tuple[Callable[[Source], list[Any]], str]] = {
    "sample_eval": (_samples, "samples"),
    "frontier": (_frontier, "frontiers"),
    "film": (_film, "films"),
    "likelihood": (_likelihood, "likelihoods"),
    "conditional_eval": (_responses, "responses"),
    "code_eval": (_programs, "programs"),
    "training": (_training, "trainings"),
}
