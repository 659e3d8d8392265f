"""Files of documents as data sets are published: parquet, JSON lines and text, streamed through the readers of `datasets`.

One file is read at a time. Code in a data set is never executed.
"""

import glob
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from flm.atomic import write_text
from flm.data.corpora.records import row_batches
from flm.handed_in import read_json

READERS = {".parquet": "parquet", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".txt": "text"}
KINDS = ".parquet, .jsonl or .txt (a line is a document), the latter two also with .gz or .zst"
_COMPRESSED = (".gz", ".zst")
# Words in a file's path that name its split; a split that is not listed is named by its own word.
_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval"},
}
_BATCH = 1000

log = logging.getLogger(__name__)


def reader_of(name: str) -> str | None:
    """The reader of `datasets` for a file of this name; None: there is none."""
    path = PurePosixPath(name)
    return READERS.get(path.with_suffix("").suffix if path.suffix in _COMPRESSED else path.suffix)


def files_of_split(names: Iterable[str], split: str, only: bool) -> list[str]:
    """The files of one split, in the order of their names.

    A path belongs to the split whose word comes last in it (data/train-00000.parquet, test/0000.parquet). Hidden files,
    other kinds, and the hub's conversions that stop part of the way (`partial-train`) are left out.

    Args:
        names: paths inside the data set, with slashes.
        split: its name in the data set: train, validation, test, or another word.
        only: whether no other split is used, so that files whose path names no split belong to this one.
    """
    known = {word: name for name, words in _WORDS.items() for word in words} | {split: split}
    marked, unmarked = [], []
    for name in sorted(names):
        words = re.findall("[a-z]+", name.lower())
        if reader_of(name) is None or "partial" in words or any(part.startswith(".") for part in name.split("/")):
            continue
        splits = [known[word] for word in words if word in known]
        if not splits:
            unmarked.append(name)
        elif splits[-1] == split:
            marked.append(name)
    return marked or (unmarked if only else [])


def files_below(folder: Path) -> list[str]:
    """Paths of all readable files inside a folder, with slashes."""
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if reader_of(file.name) and file.is_file()]


def read_documents(files: list[Path], key: str) -> Iterator[str]:
    """The documents of the files one after the other, without empty ones.

    Raises:
        ValueError: names the file: unreadable, or without strings under `key`.
    """
    return (document for file in files for document in _documents(file, key) if document)


def read_range(files: list[Path], lengths: list[int], key: str, start: int, stop: int) -> Iterator[str]:
    """Documents start .. stop-1 of the files, without empty ones. Files outside the range are not opened.

    Args:
        lengths: documents in each file, empty ones included.
    """
    begin = 0
    for file, length in zip(files, lengths, strict=True):
        first, last = max(start - begin, 0), min(stop - begin, length)
        if first < last:
            yield from filter(None, islice(_documents(file, key), first, last))
        begin += length


def count_documents(file: Path, key: str) -> int:
    """The number of documents in a file, empty ones included."""
    if reader_of(file.name) == "parquet":
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(file).metadata.num_rows
        except Exception as error:  # the library raises its own
            raise _unreadable(file, error) from error
    return sum(1 for _ in _documents(file, key))


class Digests:
    """SHA-256 of files. Each is computed once and kept in a file `memory`, as long as size, times and inode stay the same.

    Args:
        memory: None: nothing is kept.
    """

    def __init__(self, memory: Path | None):
        self._memory = memory

    def __call__(self, files: list[Path]) -> list[str]:
        if self._memory is None:
            return [_sha256(file) for file in files]
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self._memory}.lock"):  # so that one of several processes computes and the others wait
            known = self._known()
            found = {}
            for file in files:
                status = file.stat()
                # a write that sets the modification time back still moves the inode's change time
                now = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
                before = known.get(str(file.resolve()))
                found[str(file.resolve())] = before if before and before[:-1] == now else [*now, _sha256(file)]
            if any(known.get(name) != entry for name, entry in found.items()):
                write_text(self._memory, json.dumps(known | found), shared=True)
        return [found[str(file.resolve())][-1] for file in files]

    def _known(self) -> dict[str, list[Any]]:
        try:
            known = read_json(self._memory) if self._memory else {}
        except (OSError, ValueError):  # missing or damaged: everything is computed anew
            return {}
        return known if isinstance(known, dict) else {}


def _documents(file: Path, key: str) -> Iterator[Any]:
    for record in records(file, [key]):
        (column,) = record
        if record[column] is not None and not isinstance(record[column], str):
            raise _unreadable(file, ValueError(f'"{column}" holds {type(record[column]).__name__}, not text'))
        yield record[column]


def records(place: str | Path, keys: list[str], named_by: str = "data.text_key") -> Iterator[dict[str, Any]]:
    """The values under `keys` of each record of a file, nulls included. In files of text each line is a record {"text": line}.

    Args:
        place: a file, or an address that `datasets` streams from (hf://datasets/USER/SET@REVISION/FILE).
        named_by: what sets the keys, for errors.

    Raises:
        ValueError: names the file: unreadable, or without a key.
    """
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else it reports each local file to a server, and waits for it
    reader = reader_of(str(place))
    columns = ["text"] if reader == "text" else keys
    options = {"columns": columns} if reader == "parquet" else {}
    # glob.escape: the library takes names as patterns
    path = glob.escape(str(place) if "://" in str(place) else os.path.abspath(place))
    try:
        if reader == "parquet" and "://" not in str(place):
            batches = row_batches(Path(place), keys)
        else:
            stream = datasets.load_dataset(reader, data_files=[path], split="train", streaming=True, **options)
            batches = stream.iter(batch_size=_BATCH)
        for batch in batches:
            missing = next((column for column in columns if column not in batch), None)
            if missing is not None:
                raise ValueError(f'no "{missing}", only {", ".join(batch)}: set {named_by}')
            for values in zip(*(batch[column] for column in columns), strict=True):
                yield dict(zip(columns, values, strict=True))
    except StopIteration:  # the library raises it where there is no first record
        if str(place).endswith((".gz", ".zst")) and os.path.exists(place) and not os.path.getsize(place):
            raise _unreadable(place, ValueError("no bytes at all, which no compressed file has: fetch it anew")) from None
    except Exception as error:  # every reader raises its own
        raise _unreadable(place, error) from error


def _unreadable(file: str | Path, error: Exception) -> ValueError:
    cause: BaseException = error
    while str(cause).startswith("An error occurred") and cause.__cause__ is not None:
        cause = cause.__cause__
    return ValueError(f"data: {file}: {' '.join(str(cause).split()) or type(cause).__name__}")


def _sha256(file: Path) -> str:
    size = file.stat().st_size
    if size > 1 << 30:
        log.info("reading %s once to know it again (%.1f GB)", file, size / 1e9)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
