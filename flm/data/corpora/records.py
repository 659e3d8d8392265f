"""Records read from files: JSON Lines, plain or gzip; columns of .parquet and of the .arrow files that `datasets` writes."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flm.data.corpora.opened import decoded, found_instead, lines, opened

SUFFIXES = (".jsonl", ".jsonl.gz")
LINE_BYTES = 64 << 20


def records(
    path: Path, key: str, line_bytes: int = LINE_BYTES, total_bytes: int | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place in words for error messages, object) of every line that is not blank.

    Args:
        path: a file, or a folder searched with its subfolders, in the order of the names.
        key: the config key that names it.
        line_bytes: most bytes of a line after decompression.
        total_bytes: most bytes of all lines together; None: no limit, for callers that do not hold them in memory.

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
        ValueError: it is missing, no string, or cannot be encoded as UTF-8.
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
    """SHA-256 over the bytes of all files and, in a folder, their names."""
    whole = hashlib.sha256()
    for file in files_of(path, key):
        name = file.relative_to(path).as_posix() if path.is_dir() else ""
        with file.open("rb") as stream:
            whole.update(f"{name}\n{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def record_of(line: bytes, place: str) -> dict[str, Any]:
    """The JSON object in a line; raises ValueError if it holds none."""
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


GROUP_BYTES = 1 << 31  # most decompressed bytes of a row group's wanted columns, which are in memory at once
_BATCH = 1000  # rows


def table_column(file: Path, column: str, key: str) -> Iterator[str]:
    """The texts of a column without nulls.

    Args:
        key: config key that names the file, for errors.

    Raises:
        ValueError: the file is unreadable, lacks the column, or holds other values than text in it. Names key and file.
    """
    try:
        for batch in row_batches(file, [column]):
            if column not in batch:
                advice = "data=hub with data.name, data.path and data.text_key reads others"
                raise ValueError(f'no column "{column}", only {", ".join(batch)}: {advice}')
            for value in batch[column]:
                if isinstance(value, str):
                    yield value
                elif value is not None:
                    raise ValueError(f'"{column}" holds {type(value).__name__}, not text')
    except GeneratorExit:
        raise
    except Exception as error:  # the library raises its own
        raise ValueError(f"{key}: {file}: {' '.join(str(error).split()) or type(error).__name__}") from error


def row_batches(file: Path, columns: list[str]) -> Iterator[dict[str, list[Any]]]:
    """Batches of rows, values by column. If a wanted column is missing, the first batch is empty and has all names in the file.

    Row groups are read one at a time; the reader of `datasets` would read ahead of a slow consumer without limit.

    Raises:
        ValueError: a row group declares that it decompresses to more than GROUP_BYTES. The library raises other errors.
    """
    with ExitStack() as stack:
        if file.suffix == ".arrow":
            from pyarrow import ipc, memory_map

            rows = stack.enter_context(ipc.open_stream(stack.enter_context(memory_map(str(file)))))
            names, batches = rows.schema.names, rows
        else:
            from pyarrow.parquet import ParquetFile

            found = stack.enter_context(ParquetFile(file, pre_buffer=False))
            _check_sizes(found.metadata, columns)
            names = found.schema_arrow.names
            present = [name for name in columns if name in names]
            batches = found.iter_batches(batch_size=_BATCH, columns=present, use_threads=False)
        if not set(columns) <= set(names):
            yield dict.fromkeys(names, [])  # the caller's error lists these names
        for batch in batches:
            wanted = batch.select([name for name in columns if name in names])
            for start in range(0, wanted.num_rows, _BATCH):
                yield wanted.slice(start, _BATCH).to_pydict()


def _check_sizes(metadata: Any, columns: list[str]) -> None:
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(index) for index in range(group.num_columns)]
        size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] in columns)
        if size > GROUP_BYTES:
            raise ValueError(f"row group {number} expands to {size:,} bytes: write it anew with smaller row groups")
