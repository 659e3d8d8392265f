"""Opening files of text, plain or gzip, so that none costs more memory than it says or than a limit allows."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

DOCUMENT_BYTES = 1 << 28  # of a line, and of what a compressed file of one document expands to


@contextmanager
def opened(file: Path, key: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, expanded if its name ends in .gz.

    Raises:
        ValueError: one line with the config key and the file, for whatever goes wrong while it is read.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            yield stream  # type: ignore[misc]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{key}: {file} is no readable gzip file ({error})") from error
    except OSError as error:
        raise ValueError(f"{key}: cannot read {file} ({error.strerror or error})") from error


def lines(stream: IO[bytes], where: str, limit: int = DOCUMENT_BYTES) -> Iterator[tuple[int, bytes]]:
    """Number and content of every line that is not blank; raises ValueError for one of more than `limit` bytes."""
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        if len(line) > limit:
            raise ValueError(f"{where}, line {number}: longer than {limit >> 20} MB: break it into documents")
        if line.strip():
            yield number, line


def whole(stream: IO[bytes], where: str) -> bytes:
    """All of a file; raises ValueError where a compressed one expands to more than DOCUMENT_BYTES."""
    if not isinstance(stream, gzip.GzipFile):
        return stream.read()
    content = stream.read(DOCUMENT_BYTES + 1)
    if len(content) > DOCUMENT_BYTES:
        raise ValueError(f"{where} expands to more than {DOCUMENT_BYTES >> 20} MB: give it uncompressed, or as .jsonl.gz")
    return content


def decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}): convert it first") from error
