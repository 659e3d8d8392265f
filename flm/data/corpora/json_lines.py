"""Files of JSON Lines, one object a line, plain or gzip."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flm.data.corpora.opened import decoded, found_instead, lines, opened

SUFFIXES = (".jsonl", ".jsonl.gz")
LINE_BYTES = 64 << 20


def records(
    path: Path, key: str, line_bytes: int = LINE_BYTES, total_bytes: int | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object with its place in words, for error messages; blank lines are passed over.

    Args:
        path: a file, or a folder searched with its subfolders, in the order of the names.
        key: the config key that names it.
        line_bytes: of a line at most, unpacked; a few packed bytes can stand for any number.
        total_bytes: of all lines at most; None: no bound, for what is not held in memory.

    Raises:
        ValueError: one line naming the file (and line): missing, of another kind, unreadable, no JSON object, too large, or
            empty.
    """
    empty, seen = True, 0
    for file in files_of(path, key):
        with opened(file, key) as stream:
            for number, line in lines(stream, f"{key}: {file}", line_bytes):
                seen += len(line)
                place = f"{key}: {file}, line {number}"
                if total_bytes is not None and seen > total_bytes:
                    raise ValueError(f"{place}: more than {total_bytes >> 20} MB up to here")
                empty = False
                yield place, record_of(line, place)
    if empty:
        raise ValueError(f"{key}: {path} holds no lines")


def text_of(record: dict[str, Any], name: str, place: str) -> str:
    """A string of a record; dots in the name lead into nested objects ("translation.de").

    Raises:
        ValueError: it is not there, no string, or one that cannot be written as UTF-8.
    """
    found: Any = record
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if not isinstance(found, str):
        raise ValueError(f'{place}: needs a string under "{name}"; there is {_shown(record)}')
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f'{place}: half a surrogate pair at character {error.start} of "{name}"') from error
    return found


def files_of(path: Path, key: str) -> list[Path]:
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise ValueError(f"{key}: {path} is neither .jsonl nor .jsonl.gz{found_instead(path, SUFFIXES)}")
        return [path]
    if not path.is_dir():
        raise ValueError(f"{key}: no file or folder {path} (seen from {Path.cwd()})")
    files = [file for file in sorted(path.rglob("*")) if file.name.endswith(SUFFIXES) and file.is_file()]
    if not files:
        raise ValueError(f"{key}: folder {path} holds no .jsonl or .jsonl.gz{found_instead(path, SUFFIXES)}")
    return files


def digest(path: Path, key: str) -> str:
    """SHA-256 over the names (inside a folder) and bytes of all files."""
    whole = hashlib.sha256()
    for file in files_of(path, key):
        name = file.relative_to(path).as_posix() if path.is_dir() else ""
        with file.open("rb") as stream:
            whole.update(f"{name}\n{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def record_of(line: bytes, place: str) -> dict[str, Any]:
    """The object in a line; raises ValueError where there is none."""
    text = decoded(line, place)
    try:
        record = json.loads(text)
    except ValueError as error:  # no JSON, or a number of more digits than Python reads
        raise ValueError(f"{place}: no valid JSON ({error})") from error
    except RecursionError as error:
        raise ValueError(f"{place}: JSON nested too deep") from error
    if not isinstance(record, dict):
        raise ValueError(f"{place}: needs a JSON object, not {type(record).__name__}")
    return record


def _shown(record: dict[str, Any]) -> str:
    keys = ", ".join(sorted(record)) or "nothing"
    return keys if len(keys) < 200 else f"{keys[:200]}..."
