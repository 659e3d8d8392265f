"""Text of one's own: a file or a folder of .txt, .md and .jsonl, each also compressed as .gz."""

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from flm.data.corpora.random_split import RandomSplitCorpus
from flm.data.documents import Normaliser, Split
from flm.data.frames import FrameName
from flm.ranges import Count, Index, OpenShare, Text

PIECE_CHARACTERS = 2000
_BLANK_LINE = re.compile(r"\n\s*\n")
_SPACE = re.compile(r"\s+")


class TextCorpus(RandomSplitCorpus):
    """A .txt or .md file is one document; every line of a .jsonl file is one, under the key `text`.

    A corpus of a single document without `valid_path` is cut into pieces of about 2,000 characters, at blank lines
    where there are any, and each piece counts as a document, so that some can be held out.

    Args:
        path: a file, or a folder searched with its subfolders (hidden ones apart), in the order of the names; UTF-8.
        valid_path: the same for held-out text; None: hold out `valid_fraction` of the documents of `path`. With it,
            nothing of `path` is held out and `valid_fraction` and `split_seed` have no effect.

    Raises:
        ValueError: one line naming the file (and line), when it is first read: missing, of no supported kind, not
            UTF-8, damaged gzip, no JSON object with a string `text`, or no text at all.
    """

    def __init__(
        self,
        path: Text | os.PathLike[str],
        valid_path: Text | os.PathLike[str] | None = None,
        valid_fraction: OpenShare = 0.05,
        split_seed: Index = 0,
        normaliser: Normaliser | None = None,
        wrap: FrameName = "plain",
        cache_dir: Text | os.PathLike[str] | None = None,
        processes: Count | None = None,
    ):
        super().__init__(valid_fraction, split_seed, normaliser, wrap, cache_dir, processes)
        self.path = Path(path)
        self.valid_path = None if valid_path is None else Path(valid_path)

    def source(self) -> Iterator[str]:
        documents = _read(self.path, "data.path")
        first, second = next(documents), next(documents, None)
        if second is None:
            yield from pieces(first)
            return
        yield first
        yield second
        yield from documents

    def source_fingerprint(self) -> dict[str, Any]:
        valid = None if self.valid_path is None else _content(self.valid_path, "data.valid_path")
        return {"path": _content(self.path, "data.path"), "valid_path": valid, "piece_characters": PIECE_CHARACTERS}

    def describe(self) -> str:
        return str(self.path) if self.valid_path is None else f"{self.path} (held out: {self.valid_path})"

    def raw_documents(self, split: Split) -> Iterator[str]:
        if self.valid_path is None:
            return super().raw_documents(split)
        return _read(self.path, "data.path") if split == "train" else _read(self.valid_path, "data.valid_path")


def pieces(text: str, characters: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cuts at the first blank line after `characters`, else at the first white space, else at four times that."""
    start = 0
    while len(text) - start > characters:
        earliest, latest = start + characters, start + 4 * characters
        cut = _BLANK_LINE.search(text, earliest, latest) or _SPACE.search(text, earliest, latest)
        stop, following = cut.span() if cut else (latest, latest)
        yield text[start:stop]
        start = following
    if text[start:].strip():
        yield text[start:]


def _read(path: Path, key: str) -> Iterator[str]:
    empty = True
    for file in _files(path, key):
        try:
            with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
                for document in _KINDS[_kind(file)](stream, f"{key}: {file}"):
                    if document.strip():
                        empty = False
                        yield document
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{key}: {file} is no readable gzip file ({error})") from error
        except OSError as error:
            raise ValueError(f"{key}: cannot read {file} ({error.strerror or error})") from error
    if empty:
        raise ValueError(f"{key}: {path} holds no text")


def _files(path: Path, key: str) -> list[Path]:
    supported = ", ".join(_KINDS)
    if path.is_file():
        if _kind(path) not in _KINDS:
            raise ValueError(f"{key}: {path} is of no supported kind: {supported}, each also with .gz")
        return [path]
    if not path.is_dir():
        raise ValueError(f"{key}: no file or folder {path} (seen from {Path.cwd()})")
    files = [
        file
        for file in sorted(path.rglob("*"))
        if _kind(file) in _KINDS and file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not files:
        raise ValueError(f"{key}: folder {path} holds no file of a supported kind: {supported}, each also with .gz")
    return files


def _kind(file: Path) -> str:
    return (file.with_suffix("") if file.suffix == ".gz" else file).suffix


def _content(path: Path, key: str) -> str:
    """SHA-256 over the names (inside a folder) and bytes of all files: the same text elsewhere is the same corpus."""
    digest = hashlib.sha256()
    for file in _files(path, key):
        name = file.relative_to(path).as_posix() if path.is_dir() else _kind(file)
        with file.open("rb") as stream:
            digest.update(f"{name}\n{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _whole(stream: BinaryIO, where: str) -> Iterator[str]:
    yield _decode(stream.read(), where)


def _json_lines(stream: BinaryIO, where: str) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        place = f"{where}, line {number}"
        text = _decode(line, place)
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: no valid JSON ({error})") from error
        document = record.get("text") if isinstance(record, dict) else None
        if not isinstance(document, str):
            raise ValueError(f'{place}: needs a JSON object with a string under the key "text"')
        try:
            document.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{place}: half a surrogate pair at character {error.start} of the text") from error
        yield document


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}): convert it first") from error


_KINDS: dict[str, Callable[[BinaryIO, str], Iterator[str]]] = {
    ".txt": _whole,
    ".md": _whole,
    ".jsonl": _json_lines,
}
