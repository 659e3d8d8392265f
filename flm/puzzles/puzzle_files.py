"""Puzzles with solutions from local files: .csv and .jsonl, each also .gz."""

import csv
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from flm.data.corpora import records as json_lines

_CSV = (".csv", ".csv.gz")


def read_puzzles(path: Path, named_by: str, givens_key: str, answer_key: str) -> Iterator[tuple[str, str, str]]:
    """(place in words, givens, answer) of every puzzle of a file.

    Raises:
        ValueError: one line naming the file (and line): missing, unreadable, or a column is missing.
    """
    if not path.name.endswith(_CSV):
        for place, record in json_lines.records(path, named_by):
            yield place, json_lines.text_of(record, givens_key, place), json_lines.text_of(record, answer_key, place)
        return
    where = f"{named_by}: {path}"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            lines = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
            missing = next((key for key in (givens_key, answer_key) if key not in (lines.fieldnames or [])), None)
            if missing is not None:
                columns = ", ".join(lines.fieldnames or ["nothing"])
                raise ValueError(f"{where}: no column {missing!r}, only {columns}: set data.givens_key and data.answer_key")
            for record in lines:
                if record[givens_key] is None or record[answer_key] is None:
                    raise ValueError(f"{where}, line {lines.line_num}: has too few columns")
                yield f"{where}, line {lines.line_num}", record[givens_key], record[answer_key]
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{where} is no readable CSV file ({error})") from error
    except OSError as error:
        raise ValueError(f"{named_by}: cannot read {path} ({error.strerror or error})") from error


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder of JSON Lines.

    Raises:
        ValueError: there is no such file.
    """
    if path.name.endswith(_CSV) and path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    return json_lines.digest(path, "data.path")
