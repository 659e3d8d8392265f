"""Reading result files back: JSON (and Lightning's metrics.csv) to plain records, each checked for what it must hold.

A file that cannot be read is an error that names it; a kind of result that is absent is an empty list.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from flm.report.readers import READERS
from flm.report.records import Results, Source

# What is looked for below a folder. run.json marks a training run, with its metrics beside it.
PATTERNS = (
    "results.json",
    "frontier.json",
    "film-*.json",
    "likelihood*.json",
    "conditional_eval.json",
    "code_eval.json",
    "run.json",
)


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
    for source in _ordered(_distinct(sources)):
        read, records = READERS[source.kind]
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


def _ordered(sources: Sequence[Source]) -> list[Source]:
    """Training first, and the runs in one order throughout: that of their first result."""
    sources = sorted(sources, key=lambda source: source.kind != "training")
    place = {label: index for index, label in enumerate(dict.fromkeys(source.label for source in sources))}
    return sorted(sources, key=lambda source: place[source.label])


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
    if kind not in READERS:
        raise ValueError(f"{path}: not a result this report can show (kind is {kind!r}, known are {', '.join(READERS)})")
    return kind


def _source(path: Path, kind: str, content: Mapping[str, Any]) -> Source:
    config, checkpoint = content.get("config") or {}, content.get("checkpoint") or {}
    algorithm, data = content.get("algorithm"), (content.get("real") or {}).get("source")
    if kind == "training":  # only there is the config that of the model
        algorithm = str(config["algo"]["_target_"]).rpartition(".")[2]
        data = _data_name(config["data"])
    return Source(
        path=path,
        kind=kind,
        label=str(content.get("label") or (config.get("eval") or {}).get("label") or _label(path, checkpoint)),
        algorithm=algorithm,
        data=data,
        step=checkpoint.get("step"),
        sha256=checkpoint.get("sha256"),
        command=" ".join(content.get("command") or []),
        content=content,
    )


def _label(path: Path, checkpoint: Mapping[str, Any]) -> str:
    """The folder of the run: the one that trained the checkpoint, where there is one."""
    if "path" in checkpoint:
        file = Path(checkpoint["path"])
        return file.parent.parent.name if file.parent.name == "checkpoints" else file.stem
    return path.parent.resolve().name


def _data_name(data: Mapping[str, Any]) -> str:
    name = str(data["_target_"]).rpartition(".")[2].removesuffix("Corpus").lower()
    path = data.get("path")
    return name if path is None else f"{name} {Path(str(path)).name}"
