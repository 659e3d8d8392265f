"""Finds result files, and reads each by the reader registered for its kind.

A file that cannot be read is a ValueError of one line that names the file.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StrictStr

from flm import registry
from flm.report.labels import LENGTH, differences, in_a_line, label_of, run_label, told_apart
from flm.report.records import Results
from flm.results.files import Content, Count, Text, Whole, checked, read_json, read_result
from flm.results.kinds import ResultKind, Source

TRAINING = "training"  # the kind of run.json, which states none
COMMAND = 2000


class _Checkpoint(Content):
    path: Text | None = None
    sha256: Text | None = None
    step: Count | None = None
    config: dict[str, Any] | None = None


class _Real(Content):
    source: Text | None = None


class _Head(Content):
    label: Text | None = None
    algorithm: Text | None = None
    command: Annotated[list[StrictStr], Field(max_length=10_000)] | None = None
    config: dict[str, Any] | None = None
    checkpoint: _Checkpoint | None = None
    seed: Whole | None = None
    real: _Real | None = None
    source: Any = None


def read_results(inputs: Iterable[str | Path]) -> Results:
    """All results in the given files and, recursively, folders.

    Raises:
        ValueError: an input is missing or holds no result; a file is not JSON, of another format version, or incomplete.
    """
    kinds: dict[str, ResultKind] = dict(registry.objects("result_kinds"))
    sources = []
    for path in _result_paths(inputs, [pattern for kind in kinds.values() for pattern in kind.files]):
        content = read_result(path)
        kind = _kind(path, content, kinds)
        with _named(path, kind):
            sources.append(_source(path, kind, content))
    differing = differences(sources)
    ordered = _ordered(told_apart(sources, differing))
    read = []
    for source in ordered:
        with _named(source.path, source.kind):
            read.append((source, kinds[source.kind].read(source)))
    called = {source.path: source.label for source in sources}
    return Results(
        tuple(read),
        kinds,
        {source.label: differing[source.path] for source in reversed(ordered)},
        {source.label: called[source.path] for source in ordered},
    )


@contextmanager
def _named(path: Path, kind: str) -> Iterator[None]:
    """Turns errors about the content of a file into a ValueError that names the file."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
        said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: not a complete {kind} result ({' '.join(said.split())[:500]})") from error


def _ordered(sources: list[Source]) -> list[Source]:
    """Sources sorted by run, in the order of the runs' first results; training results come first."""
    sources = sorted(sources, key=lambda source: source.kind != TRAINING)
    place = {label: index for index, label in enumerate(dict.fromkeys(source.label for source in sources))}
    return sorted(sources, key=lambda source: place[source.label])


def _result_paths(inputs: Iterable[str | Path], patterns: list[str]) -> list[Path]:
    found: dict[Path, Path] = {}  # by resolved path, so that no file is read twice
    for given in map(Path, inputs):
        if not given.exists():
            raise ValueError(f"report.inputs: {given} does not exist")
        if given.is_dir():
            paths = sorted({path for pattern in patterns for path in given.rglob(pattern)})
            if not paths:
                raise ValueError(f"report.inputs: no result files under {given}: looked for {', '.join(patterns)}")
        else:
            paths = [given.with_name("run.json") if given.name == "metrics.csv" else given]
        found.update({path.resolve(): path for path in paths})
    if not found:
        raise ValueError("report.inputs is empty: name folders or files of results, report.inputs=[DIR,...]")
    return list(found.values())


def _kind(path: Path, content: Mapping[str, Any], kinds: Mapping[str, ResultKind]) -> str:
    kind = TRAINING if path.name == "run.json" else "likelihood" if "likelihood" in content else content.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        known = ", ".join(kinds)
        shown = repr(kind[:60]) if isinstance(kind, str) else type(kind).__name__
        raise ValueError(f"{path}: not a result this report can show (kind is {shown}, known are {known})")
    return kind


def _source(path: Path, kind: str, content: Mapping[str, Any]) -> Source:
    head = checked(_Head, content)
    config, checkpoint = head.config or {}, head.checkpoint or _Checkpoint()
    algorithm, data = head.algorithm, head.real and head.real.source
    if data is None and isinstance(head.source, str):
        data = in_a_line(head.source, LENGTH)
    training = checkpoint.config or _run_record(checkpoint.path)
    if kind == TRAINING:
        training = config
        algorithm, data = str(config["algo"]["_target_"]).rpartition(".")[2], _data_name(config["data"])
    own = (config.get("eval") or {}).get("label")
    return Source(
        path=path,
        kind=kind,
        label=run_label(head.label or own or label_of(path, checkpoint.path)),
        algorithm=algorithm,
        data=data,
        step=checkpoint.step,
        sha256=checkpoint.sha256,
        command=in_a_line(" ".join(head.command or []), COMMAND),
        seed=head.seed,
        training=training,
        content=content,
    )


def _run_record(checkpoint: str | None) -> Mapping[str, Any]:
    """The config in the run folder of a checkpoint; empty if the folder is not on this machine."""
    path = None if checkpoint is None else Path(checkpoint).parent.parent / "run.json"
    try:
        if path is None or not path.is_file():
            return {}
        found = read_json(path)
    except (OSError, ValueError):  # that file is no input of the report, so it may be damaged
        return {}
    config = found.get("config") if isinstance(found, dict) else None
    return config if isinstance(config, dict) else {}


def _data_name(data: Mapping[str, Any]) -> str:
    name = str(data["_target_"]).rpartition(".")[2].removesuffix("Corpus").lower()
    path = data.get("path")
    return in_a_line(name if path is None else f"{name} {Path(str(path)).name}", LENGTH)
