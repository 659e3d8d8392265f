"""A user's own text as a corpus: a file or folder of .txt, .md and .jsonl (each also with .gz), .parquet or .arrow."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flm.data.blocks import FrameName
from flm.data.corpora.opened import decoded, found_instead, lines, opened, whole
from flm.data.corpora.random_split import RandomSplitCorpus
from flm.data.corpora.records import record_of, table_column, text_of
from flm.data.documents import PIECE_CHARACTERS, Normaliser, Split, pieces
from flm.ranges import Count, Existing, Folder, Index, OpenShare


class TextCorpus(RandomSplitCorpus):
    """Documents from files of text.

    A .txt or .md file is one document. So is each line of a .jsonl file (its key `text`), and each row of a .parquet file or
    of a folder that `datasets` wrote with `save_to_disk` (its column `text`).

    A single document without `valid_path` is cut into pieces of about 2,000 characters, at blank lines where there are any.
    Each piece then counts as a document, so that some can be held out.

    Args:
        path: a file, or a folder searched with its subfolders, except hidden ones, in the order of the names; UTF-8.
        valid_path: the same for held-out text; None: hold out `valid_fraction` of the documents of `path`. With it,
            nothing of `path` is held out and `valid_fraction` and `split_seed` have no effect.

    Raises:
        ValueError: on first use, naming the file (and line): missing, of no supported kind, not UTF-8, damaged gzip, no
            JSON object with a string `text`, or no text at all.
    """

    def __init__(
        self,
        path: Existing,
        valid_path: Existing | None = None,
        valid_fraction: OpenShare = 0.05,
        split_seed: Index = 0,
        normaliser: Normaliser | None = None,
        wrap: FrameName = "plain",
        cache_dir: Folder | None = None,
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


def _read(path: Path, key: str) -> Iterator[str]:
    empty = True
    for file in _files(path, key):
        for document in _KINDS[_kind(file)](file, key):
            if document.strip():
                empty = False
                yield document
    if empty:
        raise ValueError(f"{key}: {path} holds no text")


def _files(path: Path, key: str) -> list[Path]:
    supported = f"{', '.join(_KINDS)}, the first three also with .gz"
    if path.is_file():
        if _kind(path) not in _KINDS:
            raise ValueError(f"{key}: {path} is of no supported kind: {supported}{found_instead(path, tuple(_KINDS))}")
        return [path]
    if not path.is_dir():
        raise ValueError(f"{key}: no file or folder {path} (seen from {Path.cwd()})")
    splits = sorted(file.parent.name for file in path.glob("*/state.json")) if (path / "dataset_dict.json").is_file() else []
    if len(splits) > 1:
        first = "train" if "train" in splits else splits[0]
        other = next(name for name in splits if name != first)
        raise ValueError(
            f"{key}: {path} holds the splits {', '.join(splits)}: name two of them, as in data.path={path / first} "
            f"data.valid_path={path / other}"
        )
    files = [
        file
        for file in sorted(path.rglob("*"))
        if _kind(file) in _KINDS and file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    files = [file for file in files if not (file.suffix == ".arrow" and file.name.startswith("cache-"))]
    if not files:
        raise ValueError(
            f"{key}: folder {path} holds no file of a supported kind: {supported}{found_instead(path, tuple(_KINDS))}"
        )
    return files


def _kind(file: Path) -> str:
    inner = file.with_suffix("").suffix if file.suffix == ".gz" else file.suffix
    return "" if file.suffix == ".gz" and inner in (".parquet", ".arrow") else inner


def _content(path: Path, key: str) -> str:
    """SHA-256 over the bytes of all files and, in a folder, their names: a corpus that is moved keeps its cache."""
    digest = hashlib.sha256()
    for file in _files(path, key):
        name = file.relative_to(path).as_posix() if path.is_dir() else _kind(file)
        with file.open("rb") as stream:
            digest.update(f"{name}\n{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _whole(file: Path, key: str) -> Iterator[str]:
    with opened(file, key) as stream:
        yield decoded(whole(stream, f"{key}: {file}"), f"{key}: {file}")


def _json_lines(file: Path, key: str) -> Iterator[str]:
    with opened(file, key) as stream:
        for number, line in lines(stream, f"{key}: {file}"):
            place = f"{key}: {file}, line {number}"
            record = record_of(line, place)
            if "text" not in record and {"prompt", "response"} <= record.keys():
                raise ValueError(f"{place}: prompts with responses are read by data=pairs")
            yield text_of(record, "text", place)


def _table(file: Path, key: str) -> Iterator[str]:
    for document in table_column(file, "text", key):
        try:
            document.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{key}: {file}: half a surrogate pair at character {error.start} of a text") from error
        yield document


_KINDS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _whole,
    ".md": _whole,
    ".jsonl": _json_lines,
    ".parquet": _table,
    ".arrow": _table,
}
