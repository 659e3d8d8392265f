"""Labels of runs: a run's own name or, if that says nothing, the config values in which it differs from the others."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flm.results.kinds import Source

# keys of places and of logging, which change no result
_INCIDENTAL = re.compile(
    r"run_dir|(wandb|logger|hydra|checkpointing|mode|report)\..*|eval\.(checkpoint_path|label)"
    r"|.*(cache_dir|folder|dirpath|save_dir|num_workers)"
)
_SAYS_NOTHING = re.compile(r"\d[\d_.:T-]*")  # numbers of a multirun, dates and times
SEED = "seed"
LENGTH = 80  # characters of a label
MANY = 6  # the most keys that make a readable label
_DEPTH = 12


def label_of(path: Path, checkpoint: str | None) -> str:
    """The name of the run folder of the checkpoint; without a checkpoint, the folder of the result."""
    if checkpoint is not None:
        file = Path(checkpoint)
        return file.parent.parent.name if file.parent.name == "checkpoints" else file.stem
    return path.parent.resolve().name


def run_label(text: object) -> str:
    """A label for figures and tables. It begins with no underscore, since matplotlib hides such labels."""
    return in_a_line(text, LENGTH).lstrip("_ ") or "unnamed"


def in_a_line(text: object, length: int) -> str:
    """The text in one line, without control characters, cut to `length` characters."""
    line = "".join(c if c.isprintable() else " " for c in str(text)[: 2 * length])
    line = " ".join(line.split())
    return line if len(line) <= length else line[: length - 1] + "\u2026"


def differences(sources: Sequence[Source]) -> dict[Path, dict[str, Any]]:
    """By file: the config keys whose values differ, among all trainings, and among the evaluations of one kind.

    A group that some trainings lack is no difference, since packed models and older versions record less. A group that some
    evaluations lack is one, with the group's class as its value.
    """
    found = _varying(_of_all_known({source.path: _flat(source.training) for source in sources}, named=False))
    for kind in dict.fromkeys(source.kind for source in sources):
        own = {one.path: _flat(one.content.get("config") or {}) for one in sources if one.kind == kind}
        for source in sources:
            if source.training:  # the seed of the training says more
                own.get(source.path, {}).pop(SEED, None)
        for path, values in _varying(_of_all_known(own, named=True)).items():
            found[path] = values | found[path]
    return found


def told_apart(sources: Sequence[Source], differing: Mapping[Path, Mapping[str, Any]]) -> list[Source]:
    """The sources with labels that tell runs apart.

    A label that is only a number or date becomes the values that differ. To a label of several runs these values are added, or
    the folder if they do not suffice.
    """
    named = []
    for source in sources:
        values = differing[source.path]
        if _SAYS_NOTHING.fullmatch(source.label) and 0 < len(values) <= MANY:
            source = replace(source, label=run_label(in_words(values)))
        named.append(source)
    groups: dict[tuple[str, str], list[Source]] = {}
    for source in named:
        groups.setdefault((source.label, source.kind), []).append(source)
    shared: dict[str, list[Path]] = {}
    words: dict[Path, str] = {}
    for (label, _), group in groups.items():
        folders = {one.path.parent.resolve() for one in group}
        if len(folders) > 1:
            shared.setdefault(label, []).extend(folders)
            within = {one.path: {key: differing[one.path].get(key) for key in _unlike(group, differing)} for one in group}
            texts = {path: in_words(values) for path, values in within.items() if 0 < len(values) <= MANY}
            pairs = {(path.parent.resolve(), text) for path, text in texts.items()}  # films of a run are several files
            if len(pairs) == len(folders) == len(set(texts.values())):
                words |= texts
    apart = []
    for source in named:
        if source.label in shared:
            folder = os.path.relpath(source.path.parent.resolve(), os.path.commonpath(shared[source.label]))
            source = replace(source, label=f"{source.label} ({words.get(source.path, folder)})")
        apart.append(source)
    return apart


def _of_all_known(flat: Mapping[Path, dict[str, Any]], named: bool) -> dict[Path, dict[str, Any]]:
    """The values without those groups that some files lack. If `named`, a file that has such a group keeps its class."""
    groups = {path: {key.partition(".")[0] for key in values} for path, values in flat.items() if values}
    some = set().union(*groups.values()) - set.intersection(*groups.values()) - {SEED} if groups else set()
    return {
        path: {key: value for key, value in values.items() if key.partition(".")[0] not in some}
        | ({group: _class_in(group, values) for group in sorted(some & groups.get(path, set()))} if named else {})
        for path, values in flat.items()
    }


def _varying(flat: Mapping[Path, Mapping[str, Any]]) -> dict[Path, dict[str, Any]]:
    """The values of the keys that differ. If a part is null in some files, the others have its class in place of its keys."""
    known = [values for values in flat.values() if values]
    keys, missing = dict.fromkeys(key for values in known for key in values), object()
    varying = [key for key in keys if not _agree([values.get(key, missing) for values in known if not _left_out(key, values)])]
    return {
        path: {key: _class_in(key, values) for key in varying if key in values or _class_in(key, values)}
        for path, values in flat.items()
    }


def _agree(values: Sequence[Any]) -> bool:
    """Whether all values are the same. A path also agrees with its last part alone, as a published recipe has it."""
    found, names = {repr(value) for value in values}, {os.path.basename(value) for value in values if isinstance(value, str)}
    return len(found) < 2 or (len(names) == 1 and names <= set(values) and all(isinstance(value, str) for value in values))


def _class_in(key: str, values: Mapping[str, Any]) -> Any:
    """The value of a key, or the class of a part that has keys of its own."""
    if key in values or not any(other.startswith(f"{key}.") for other in values):
        return values.get(key)
    return str(values.get(f"{key}._target_", "set")).rpartition(".")[2]


def _left_out(key: str, values: Mapping[str, Any]) -> bool:
    """Whether a part that contains the key is null."""
    parts = key.split(".")
    return any(values.get(".".join(parts[:count]), key) is None for count in range(1, len(parts)))


def _unlike(group: Sequence[Source], differing: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for source in group for key in differing[source.path])
    return [key for key in keys if len({repr(differing[source.path].get(key)) for source in group}) > 1]


def in_words(values: Mapping[str, Any]) -> str:
    """Keys and values as "lr=0.001, seed=2". Of each key only as many last parts are kept as tell it from the others."""
    short = {}
    for key in values:
        parts = key.split(".")
        tails = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        ends = [tail for tail in tails if sum(f".{other}".endswith(f".{tail}") for other in values) == 1]
        short[key] = ends[0] if ends else key
    return ", ".join(f"{short[key]}={_value(value)}" for key, value in values.items())


def _value(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"\u2026{text[-39:]}"


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key, without incidental ones, and with paths relative to the run."""
    found: dict[str, Any] = {}
    own = str(config.get("run_dir") or "")
    waiting: list[tuple[str, Any, int]] = [("", config, 0)]
    while waiting:
        key, value, depth = waiting.pop()
        if isinstance(value, Mapping) and depth < _DEPTH:
            waiting += [(f"{key}.{name}" if key else str(name), inner, depth + 1) for name, inner in value.items()]
        elif not _INCIDENTAL.fullmatch(key):
            found[key] = _seen_from(own, value) if own and isinstance(value, str) else value
    return dict(sorted(found.items()))


def _seen_from(run: str, value: str) -> str:
    """A path relative to its run, so that runs with their teachers in the same relative place agree."""
    value, parent = value.replace(run, "RUN"), os.path.dirname(run)
    names = value.split("/")
    for count in range(len(names) - 1, 0, -1):
        start = "/".join(names[:count])
        if start and (parent == start or parent.endswith(f"/{start}")):
            return "/".join(("..", *names[count:]))
    return value
