"""One shard: consecutive whole documents as token ids in one file; and a record of the chunks of shards that were verified.

train-00003.bin     little-endian uint16 (V <= 65536) or uint32, documents in order, one EOS after each (or BOS before)
train-00003.json    its entry of the manifest, written last: a shard without it is not finished
"""

import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from flm import atomic
from flm.data.documents import Normaliser
from flm.data.tokenizers import ANCHOR, Tokenizer
from flm.handed_in import read_json

SHARD_CHARACTERS = 1 << 26
CHUNK_BYTES = 1 << 18  # bytes under one CRC-32: all are read at the first touch, so not many more than a disk reads ahead
_KEY_BYTES = 32
_SETTLED_SECONDS = 3.0  # longer than a tick of any file system's clock
_BATCH_CHARACTERS = 1 << 18  # tokenised at once: the library takes some hundred bytes of memory per token
_BETWEEN_WORDS = re.compile(r"(?<=\S)[ \n](?=\S)")

Advance = Callable[[int], Any]


@dataclass
class ShardWriter:
    """Writes shards into a folder. A shard depends only on its documents, so processes may write them in any order.

    If two processes write the same shard at once, both write the same bytes, and each renames a whole file.
    """

    folder: Path
    normaliser: Normaliser | None
    tokenizer: Tokenizer

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("<u2" if self.tokenizer.vocab_size <= 1 << 16 else "<u4")

    def __call__(self, name: str, documents: list[str], advance: Advance) -> tuple[dict[str, Any], np.ndarray]:
        """The shard's entry of the manifest, and how often each id occurs in it, int64 (V,).

        A finished shard of the same documents is kept if its checksums are right.

        Args:
            name: of the files, without suffix.
            documents: before normalisation.
            advance: called with the number of new tokens.
        """
        source = _fingerprint(documents)
        return self._finished(name, source, advance) or self._write(name, documents, source, advance)

    def _finished(self, name: str, source: str, advance: Advance) -> tuple[dict[str, Any], np.ndarray] | None:
        try:
            record = read_json(self.folder / f"{name}.json")
            facts, counts = self._examine(self.folder / record["file"])
            if record["source"] != source or any(record[key] != value for key, value in facts.items()):
                return None
        except (OSError, ValueError, KeyError, TypeError):  # missing or damaged
            return None
        advance(record["tokens"])
        return record, counts

    def _write(self, name: str, documents: list[str], source: str, advance: Advance) -> tuple[dict[str, Any], np.ndarray]:
        kept = 0
        num_bytes = 0

        def texts() -> Iterator[str]:
            nonlocal kept, num_bytes
            for document in documents:
                text = document if self.normaliser is None else self.normaliser(document)
                if text:
                    kept += 1
                    num_bytes += len(text.encode())
                    yield text

        path = self.folder / f"{name}.bin"
        with atomic.draft(path, shared=True) as partial, partial.open("wb") as file:
            for ids in encode_documents(texts(), self.tokenizer):
                file.write(np.asarray(ids, dtype=self.dtype).tobytes())
                advance(len(ids))
        facts, counts = self._examine(path)
        record = {"file": path.name, "documents": kept, "bytes": num_bytes, "source": source, **facts}
        atomic.write_text(self.folder / f"{name}.json", json.dumps(record), shared=True)
        return record, counts

    def _examine(self, path: Path) -> tuple[dict[str, Any], np.ndarray]:
        """Token count and checksums of a file, and how often each id occurs in it."""
        digest = hashlib.sha256()
        checks: list[str] = []
        counts = np.zeros(self.tokenizer.vocab_size, dtype=np.int64)
        tokens = 0
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                checks.append(f"{zlib.crc32(chunk):08x}")
                ids = np.frombuffer(chunk, dtype=self.dtype)
                tokens += len(ids)
                counts += np.bincount(ids, minlength=len(counts))
        return {"tokens": tokens, "sha256": digest.hexdigest(), "crc32": "".join(checks)}, counts


def document_groups(documents: Iterable[str], characters: int | None = None) -> Iterator[list[str]]:
    """Consecutive documents, grouped to shards of at least `characters` (None: SHARD_CHARACTERS) but for the last."""
    wanted = SHARD_CHARACTERS if characters is None else characters
    group: list[str] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document)
        if size >= wanted:
            yield group
            group, size = [], 0
    if group:
        yield group


def encode_documents(documents: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Ids of the documents in lists that need not end where a document does.

    Each document has EOS after it, or BOS before it with a tokenizer that `begins_documents`.
    """
    texts: list[str] = []
    ends: list[bool] = []
    begins = True
    size = 0
    for document in documents:
        for part, end in _parts(document):
            texts.append(part)
            ends.append(end)
            size += len(part)
            if size >= _BATCH_CHARACTERS:
                yield from _encode_run(texts, ends, tokenizer, begins)
                texts, ends, size, begins = [], [], 0, end
    yield from _encode_run(texts, ends, tokenizer, begins)


def _encode_run(texts: list[str], ends: list[bool], tokenizer: Tokenizer, begins: bool) -> Iterator[list[int]]:
    """Ids of each part of documents; `begins`: whether the first part begins its document."""
    first = [begins, *ends][: len(texts)]
    # tokenizers add or strip blanks at the start of a text: a later part, which begins with the blank before a word, is
    # tokenised after a word, whose ids are cut off again
    goes_on = [not start and text[:1] in (" ", "\n") for text, start in zip(texts, first, strict=True)]
    anchor = tokenizer.encode(ANCHOR)
    encoded = tokenizer.encode_batch([ANCHOR + text if on else text for text, on in zip(texts, goes_on, strict=True)])
    for ids, on, start, end in zip(encoded, goes_on, first, ends, strict=True):
        ids = ids[len(anchor) :] if on else ids
        if tokenizer.begins_documents:
            yield [tokenizer.bos_id, *ids] if start else ids
        else:
            yield [*ids, tokenizer.eos_id] if end else ids


def _parts(document: str) -> Iterator[tuple[str, bool]]:
    """The parts of a document, each with whether it is the last.

    A very long document is cut before a single blank between two words, where tokenizers cut too.
    """
    start = 0
    while len(document) - start > _BATCH_CHARACTERS:
        earliest = start + _BATCH_CHARACTERS // 2
        cut = _BETWEEN_WORDS.search(document, earliest, start + _BATCH_CHARACTERS)
        stop = cut.start() if cut else start + _BATCH_CHARACTERS
        yield document[start:stop], False
        start = stop
    yield document[start:], True


def _fingerprint(documents: list[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for document in documents:
        raw = document.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


class Sound:
    """Which chunks of some files were verified, recorded in a file beside them for other processes and later runs.

    Where the record cannot be written, every process verifies for itself. It does so too for a file that changed in the last
    seconds, since that may change again within a tick of the file system's clock and look the same.

    Args:
        memory: path of the record: a digest of the files' sizes, times and inodes, and a byte for each chunk, 1 if verified.
        names: of the files.
        chunks: number of chunks of each file.
    """

    def __init__(self, memory: Path, names: list[str], chunks: list[int]):
        self._memory, self._names = memory, names
        self._starts = [0, *accumulate(chunks)]
        self._own = bytearray(self._starts[-1])
        self._settled: list[float] | None = None  # time from which each file counts as unchanged; None: not yet read

    def known(self, file: int, chunk: int) -> bool:
        """Whether a chunk was verified before, by index."""
        index = self._starts[file] + chunk
        if not self._own[index]:
            if self._settled is None:
                self._settled = self._recall()
            self._own[index] = self._own[index] or self._read(_KEY_BYTES + index, 1) == b"\1"
        return bool(self._own[index])

    def found(self, file: int, chunk: int) -> None:
        """Records that a chunk was verified. `known` must have been called before."""
        index = self._starts[file] + chunk
        self._own[index] = 1
        if self._settled is not None and time.time() > self._settled[file]:
            with suppress(OSError):
                handle = os.open(self._memory, os.O_WRONLY)
                try:
                    os.pwrite(handle, b"\1", _KEY_BYTES + index)
                finally:
                    os.close(handle)

    def _recall(self) -> list[float]:
        status = [(self._memory.parent / name).stat() for name in self._names]
        looks = [[s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for s in status]
        key = hashlib.sha256(json.dumps([self._names, looks]).encode()).digest()
        if self._read(0, _KEY_BYTES) != key:
            with suppress(OSError):
                atomic.write_bytes(self._memory, key, shared=True)
        seen = self._read(_KEY_BYTES, len(self._own))
        self._own[: len(seen)] = bytes(mark == 1 for mark in seen)
        return [s.st_ctime + _SETTLED_SECONDS for s in status]

    def _read(self, start: int, size: int) -> bytes:
        try:
            handle = os.open(self._memory, os.O_RDONLY)
        except OSError:
            return b""
        try:
            return os.pread(handle, size, start)
        except OSError:
            return b""
        finally:
            os.close(handle)
