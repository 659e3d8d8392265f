"""Reading result files back: JSON (and Lightning's metrics.csv) to plain records, each checked for what it must hold.

A file that cannot be read is an error that names it; a kind of result that is absent is an empty list.
"""

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from flm.evaluation.estimate import Estimate
from flm.evaluation.result_records import (
    Bucket,
    Film,
    Frame,
    Frontier,
    FrontierPoint,
    Likelihood,
    Number,
    Results,
    Samples,
    Source,
    TextSet,
    Training,
)

# What is looked for below a folder. run.json marks a training run, with its metrics beside it.
PATTERNS = ("results.json", "frontier.json", "film-*.json", "likelihood*.json", "run.json")
_BUCKET = re.compile(r"val/(.+)_tau_(\d\.\d)-(\d\.\d)")
_SPAN = re.compile(r"t (\d\.\d+) to (\d\.\d+)")
_POINT = re.compile(r".* at t (\d\.\d+)")
_CONTEXT_FREE = "context_free_ce_nats"


def read_results(inputs: Iterable[str | Path], format_version: int) -> Results:
    """All results in the given files and, recursively, folders.

    Raises:
        ValueError: an input is missing or holds no result; a file is not JSON, of another format version, or incomplete.
    """
    results = Results()
    sources = []
    for path in _result_paths(inputs):
        content = _load(path, format_version)
        kind = _kind(path, content)
        with _named(path, kind):
            sources.append(_source(path, kind, content))
    for source in _distinct(sources):
        read, records = _READERS[source.kind]
        with _named(source.path, source.kind):
            found = read(source)
        results.sources.append(found[0].source if found else source)
        getattr(results, records).extend(found)
    return results


@contextmanager
def _named(path: Path, kind: str) -> Iterator[None]:
    """What goes wrong with the content of a file becomes an error that names the file."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"{path}: not a complete {kind} result ({type(error).__name__}: {error})") from error


def _distinct(sources: Sequence[Source]) -> list[Source]:
    """A label that two results of one kind share, from different folders, gets the folder added."""
    folders: dict[tuple[str, str], set[Path]] = {}
    for source in sources:
        folders.setdefault((source.label, source.kind), set()).add(source.path.parent.resolve())
    shared = {label: found for (label, _), found in folders.items() if len(found) > 1}
    named = []
    for source in sources:
        if source.label in shared:
            folder = os.path.relpath(source.path.parent.resolve(), os.path.commonpath(shared[source.label]))
            source = replace(source, label=f"{source.label} ({folder})")
        named.append(source)
    return named


def _result_paths(inputs: Iterable[str | Path]) -> list[Path]:
    found: dict[Path, Path] = {}  # by resolved path: the same file is read once
    for given in map(Path, inputs):
        if not given.exists():
            raise ValueError(f"report.inputs: {given} does not exist")
        if given.is_file():
            paths = [given.with_name("run.json") if given.name == "metrics.csv" else given]
        else:
            paths = sorted({path for pattern in PATTERNS for path in given.rglob(pattern)})
            if not paths:
                raise ValueError(f"report.inputs: no result files under {given}: looked for {', '.join(PATTERNS)}")
        found.update({path.resolve(): path for path in paths})
    if not found:
        raise ValueError("report.inputs is empty: name folders or files of results, report.inputs=[DIR,...]")
    return list(found.values())


def _load(path: Path, format_version: int) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the decoding or of the JSON
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != format_version:
        raise ValueError(
            f"{path}: format_version is {version}, this program reads {format_version}: "
            "make the result again, or read it with the version that wrote it"
        )
    return content


def _kind(path: Path, content: Mapping[str, Any]) -> str:
    kind = "training" if path.name == "run.json" else "likelihood" if "likelihood" in content else content.get("kind")
    if kind not in _READERS:
        raise ValueError(f"{path}: not a result this report can show (kind is {kind!r}, known are {', '.join(_READERS)})")
    return kind


def _source(path: Path, kind: str, content: Mapping[str, Any]) -> Source:
    config, checkpoint = content.get("config") or {}, content.get("checkpoint") or {}
    algo = (config.get("algo") or {}).get("_target_", "?").rpartition(".")[2]
    return Source(
        path=path,
        kind=kind,
        label=str(content.get("label") or (config.get("eval") or {}).get("label") or path.parent.resolve().name),
        algorithm=content.get("algorithm") or algo,
        data=_data_name(config.get("data") or {}),
        step=checkpoint.get("step"),
        sha256=checkpoint.get("sha256"),
        command=" ".join(content.get("command") or []),
        content=content,
    )


def _data_name(data: Mapping[str, Any]) -> str:
    name = str(data.get("_target_", "?")).rpartition(".")[2].removesuffix("Corpus").lower()
    path = data.get("path")
    return name if path is None else f"{name} {Path(str(path)).name}"


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
    perplexity = tuple(
        (_scorer_name(row["scorer"], row.get("protocol")), float(row["ppl"]), _estimate(row["nats_per_token"]))
        for row in metrics.pop("gen_ppl", None) or []
    )
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


def _scorer_name(scorer: Any, protocol: Any = None) -> str:
    """Name, revision and protocol: numbers of two scorers are comparable only where all three agree."""
    if isinstance(scorer, Mapping):
        protocol = protocol or scorer.get("protocol")
        revision = scorer.get("revision")
        scorer = f"{scorer['name']}@{str(revision)[:12]}" if revision else scorer["name"]
    return f"{scorer}, {protocol}" if protocol else str(scorer)


def _frontier(source: Source) -> list[Frontier]:
    points = [
        FrontierPoint(point["settings"], _sure_estimate(point["entropy_nats"]), _sure_estimate(point["log_ppl"]))
        for point in source.content["points"]
    ]
    real, matched = source.get("real"), tuple(source.get("matched") or ())
    swept = {key.removeprefix("closest_") for row in matched for key in row if key.startswith("closest_")}
    swept -= {"ppl", "entropy_nats"}
    found = Frontier(
        source=source,
        scorer=_scorer_name(source.get("scorer") or "unnamed scorer"),
        along=min(swept) if swept else "temperature",
        points=tuple(points),
        real=None if real is None else (_sure_estimate(real["entropy_nats"]), _sure_estimate(real["log_ppl"])),
        matched=matched,
    )
    return [found]


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
        variants = {"": entry} if "nats_per_token" in entry else {k: v for k, v in entry.items() if isinstance(v, Mapping)}
        for variant, values in variants.items():
            parts = {name: float(nats) for name, nats in (values.get("parts_nats_per_token") or {}).items()}
            error = values["standard_error_nats"]
            record = Likelihood(
                source=source,
                corpus=source.data if corpus == "data" else corpus,
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


def _spans(parts: Mapping[str, float]) -> tuple[tuple[float, float, float], ...]:
    """Parts named "t 0.100 to 0.200" or "... at t 0.950", along t."""
    spans = []
    for name, nats in parts.items():
        if match := _SPAN.fullmatch(name):
            spans.append((float(match[1]), float(match[2]), nats))
        elif match := _POINT.fullmatch(name):
            spans.append((float(match[1]), float(match[1]), nats))
    return tuple(sorted(spans))


def _training(source: Source) -> list[Training]:
    starts = sorted(source.path.parent.glob("metrics/version_*/metrics.csv"), key=lambda path: _version(path))
    rows = [row for path in starts for row in _csv_rows(path)]
    steps = [int(float(row["step"])) + 1 for row in rows if row.get("step")]
    last = _csv_rows(starts[-1]) if starts else []
    speeds = [float(row["perf/tokens_per_second"]) for row in last if row.get("perf/tokens_per_second")]
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
_READERS: dict[str, tuple[Callable[[Source], list[Any]], str]] = {
    "sample_eval": (_samples, "samples"),
    "frontier": (_frontier, "frontiers"),
    "film": (_film, "films"),
    "likelihood": (_likelihood, "likelihoods"),
    "training": (_training, "trainings"),
}
