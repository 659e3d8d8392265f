"""Files of JSON Lines, one object a line, plain or gzip."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
        try:
            with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
                for number, line in enumerate(iter(lambda: stream.readline(line_bytes + 1), b""), start=1):
                    seen += len(line)
                    if len(line) > line_bytes:
                        raise ValueError(f"{key}: {file}, line {number}: longer than {line_bytes >> 20} MB")
                    if total_bytes is not None and seen > total_bytes:
                        raise ValueError(f"{key}: {file}, line {number}: more than {total_bytes >> 20} MB up to here")
                    if line.strip():
                        empty = False
                        place = f"{key}: {file}, line {number}"
                        yield place, _record(line, place)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{key}: {file} is no readable gzip file ({error})") from error
        except OSError as error:
            raise ValueError(f"{key}: cannot read {file} ({error.strerror or error})") from error
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
        raise ValueError(f'{place}: needs a string under "{name}"; there is {", ".join(sorted(record))}')
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f'{place}: half a surrogate pair at character {error.start} of "{name}"') from error
    return found


def files_of(path: Path, key: str) -> list[Path]:
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise ValueError(f"{key}: {path} is neither .jsonl nor .jsonl.gz")
        return [path]
    if not path.is_dir():
        raise ValueError(f"{key}: no file or folder {path} (seen from {Path.cwd()})")
    files = [file for file in sorted(path.rglob("*")) if file.name.endswith(SUFFIXES) and file.is_file()]
    if not files:
        raise ValueError(f"{key}: folder {path} holds no .jsonl or .jsonl.gz")
    return files


def digest(path: Path, key: str) -> str:
    """SHA-256 over the names (inside a folder) and bytes of all files."""
    whole = hashlib.sha256()
    for file in files_of(path, key):
        name = file.relative_to(path).as_posix() if path.is_dir() else ""
        with file.open("rb") as stream:
            whole.update(f"{name}\n{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def _record(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: no valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{place}: needs a JSON object, not {type(record).__name__}")
    return record
