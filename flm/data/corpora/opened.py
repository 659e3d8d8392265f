"""Opening files of text, plain or gzip, within a limit on memory; and, for a file of the wrong kind, which data= reads it."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

DOCUMENT_BYTES = 1 << 28  # most bytes of a line, and of a compressed file of one document when expanded


@contextmanager
def opened(file: Path, key: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, expanded if its name ends in .gz.

    Raises:
        ValueError: one line with the config key and the file, for any error while the block reads it.
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


_LOOKED_AT = 10_000  # files of a folder
# what reads a file, by the end of its name
_READ_BY = {
    ".txt": "data=text",
    ".md": "data=text",
    ".jsonl": "data=text, or data=pairs for prompts with responses",
    ".parquet": "data=text, or data=hub_pairs for prompts with responses",
    ".arrow": "data=text, for what datasets wrote by save_to_disk",
    ".bin": "data=golf_shards, for *_train_*.bin and *_val_*.bin",
    ".json": "data=hub with data.name, data.text_key and data.path",
    ".ndjson": "data=hub with data.name, data.text_key and data.path",
    ".zst": "data=hub with data.name, data.text_key and data.path",
    ".csv": "none: convert it to .jsonl, an object with the key text a line",
    ".tsv": "none: convert it to .jsonl, an object with the key text a line",
    ".ckpt": "none: it is a checkpoint, for eval.checkpoint_path",
    ".safetensors": "none: it is a model, for eval.checkpoint_path",
}


def found_instead(path: Path, but: tuple[str, ...] = ()) -> str:
    """What reads the files at a path, for the end of an error: "; it holds .parquet, read by ...". "" if none is known.

    Args:
        but: ends of names to leave out.
    """
    names = [path.name] if path.is_file() else [file.name for file in islice(path.rglob("*"), _LOOKED_AT)]
    if "manifest.json" in names and any(name.endswith("-counts.bin") for name in names):
        return "; it holds a cache of tokens made here: name the text that it was made of"
    ends = [Path(name.removesuffix(".gz")).suffix for name in names]
    known = [end for end in _READ_BY if end in ends and end not in but]
    return "".join(f"; it holds {end}, read by {_READ_BY[end]}" for end in known[:2])
