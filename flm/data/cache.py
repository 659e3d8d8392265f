"""Tokenised documents on disk: one folder per (corpus, tokenizer), memory-mapped.

    manifest.json       what was tokenised with what, counts, and the SHA-256 of every shard
    train-00000.bin     token ids, little-endian uint16 (V <= 65536) or uint32, documents in order, one EOS after each
    valid-00000.bin

A shard holds whole documents. How documents are cut into blocks is decided when reading, so all lengths share a cache.
"""

import hashlib
import json
import logging
import re
import shutil
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from flm.data.corpora.corpus import SPLITS, Corpus, Split
from flm.data.tokenizers import Tokenizer

FORMAT = 1
SHARD_CHARACTERS = 1 << 26
_BATCH_CHARACTERS = 1 << 18  # what is tokenised at once: the library needs some hundred bytes per token meanwhile
_VERIFY_BYTES = 1 << 30  # a larger cache is checked by sizes alone: hashing it at every start would take minutes
_MAX_OPEN = 256  # every map holds a file open, and a process may have 1,024
_BETWEEN_WORDS = re.compile(r"(?<=\S)[ \n](?=\S)")

log = logging.getLogger(__name__)


class TokenCache:
    """An opened cache.

    Raises:
        ValueError: the folder is damaged; names the file and what to do.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        manifest = folder / "manifest.json"
        try:
            self.manifest: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
            self.vocab_size: int = self.manifest["vocab_size"]
            self._dtype = np.dtype(self.manifest["dtype"])
            shards = {split: self.manifest["splits"][split]["shards"] for split in SPLITS}
            files = [(shard["file"], shard["tokens"], shard["sha256"]) for split in SPLITS for shard in shards[split]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(manifest, repr(error)) from error
        if self.manifest.get("format") != FORMAT:
            raise self._damaged(manifest, f"format {self.manifest.get('format')}, not {FORMAT}")
        verify = sum(tokens for _, tokens, _ in files) * self._dtype.itemsize <= _VERIFY_BYTES
        for name, tokens, sha256 in files:
            path = folder / name
            if not path.is_file() or path.stat().st_size != tokens * self._dtype.itemsize:
                raise self._damaged(path, f"not {tokens} tokens of {self._dtype}")
            if verify and _sha256(path) != sha256:
                raise self._damaged(path, "SHA-256 differs from the manifest's")

    def tokens(self, split: Split) -> "TokenStream":
        """All tokens of a split as one stream, an EOS after each document."""
        shards = self.manifest["splits"][split]["shards"]
        return TokenStream([self.folder / s["file"] for s in shards], [s["tokens"] for s in shards], self._dtype)

    def bytes_per_token(self, split: Split) -> float:
        """UTF-8 bytes of the documents over tokens of the stream (EOS tokens count, and stand for no byte)."""
        counts = self.manifest["splits"][split]
        return counts["bytes"] / counts["tokens"]

    def _damaged(self, file: Path, what: str) -> ValueError:
        return ValueError(f"{file} is damaged or incomplete ({what}): delete the folder {self.folder} to build it anew")


class TokenStream:
    """Tokens of consecutive shards as one read-only sequence; opened in each process on first use."""

    def __init__(self, paths: list[Path], lengths: list[int], dtype: np.dtype):
        self._paths, self._dtype = paths, dtype
        self._starts = [0, *accumulate(lengths)]
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop-1 as a new int64 array (stop - start,)."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"[{start}, {stop}) is not within {len(self)} tokens")
        out = np.empty(stop - start, dtype=np.int64)
        shard = bisect_right(self._starts, start) - 1
        position = start
        while position < stop:
            end = min(stop, self._starts[shard + 1])
            offset = self._starts[shard]
            out[position - start : end - start] = self._map(shard)[position - offset : end - offset]
            position, shard = end, shard + 1
        return out

    def counts(self, vocab_size: int, stop: int | None = None) -> np.ndarray:
        """How often each id occurs before position `stop` (None: in all), int64 (vocab_size,)."""
        total = np.zeros(vocab_size, dtype=np.int64)
        stop = len(self) if stop is None else stop
        for start in range(0, stop, 1 << 24):
            total += np.bincount(self.read(start, min(stop, start + (1 << 24))), minlength=vocab_size)
        return total

    def _map(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            if len(self._maps) >= _MAX_OPEN:
                self._maps.pop(next(iter(self._maps)))
            self._maps[shard] = np.memmap(self._paths[shard], dtype=self._dtype, mode="r")
        return self._maps[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a pickled memory map is a copy of the file


def open_cache(corpus: Corpus, tokenizer: Tokenizer, root: Path) -> TokenCache:
    """The cache of these two below `root`, built first if it is not there; any number of processes may ask at once."""
    fingerprint = {"format": FORMAT, "source": corpus.fingerprint(), "tokenizer": tokenizer.fingerprint()}
    name = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / name
    if not folder.exists():
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f"{name}.lock")  # released by the system when a builder dies
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another process to tokenise %s into %s", corpus.describe(), folder)
            lock.acquire()
        try:
            if not folder.exists():
                _build(corpus, tokenizer, fingerprint, folder)
        finally:
            lock.release()
    return TokenCache(folder)


def _build(corpus: Corpus, tokenizer: Tokenizer, fingerprint: dict[str, Any], folder: Path) -> None:
    """Writes a draft beside `folder` and renames it, so that a folder with the right name is always whole."""
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    draft = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
    draft.mkdir()
    try:
        splits = {}
        for split in SPLITS:
            counts: dict[str, Any] = {"documents": 0, "tokens": 0, "bytes": 0, "shards": []}
            with _progress(f"tokenising {split}") as advance:
                for number, documents in enumerate(document_groups(corpus.documents(split))):
                    path = draft / f"{split}-{number:05d}.bin"
                    shard = write_shard(path, documents, tokenizer, dtype, advance)
                    counts["documents"] += len(documents)
                    counts["bytes"] += sum(len(document.encode()) for document in documents)
                    counts["tokens"] += shard["tokens"]
                    counts["shards"].append(shard)
            if not counts["tokens"]:
                raise ValueError(f"data: the {split} split of {corpus.describe()} is empty after normalisation")
            splits[split] = counts
        manifest = {**fingerprint, "vocab_size": tokenizer.vocab_size, "dtype": dtype.str, "splits": splits}
        (draft / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        try:
            draft.rename(folder)
        except OSError:  # where locks do not work (some network file systems), the first to finish wins
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def document_groups(documents: Iterable[str], characters: int = SHARD_CHARACTERS) -> Iterator[list[str]]:
    """Consecutive documents of at least `characters` together (the last group may have fewer): one shard's share."""
    group: list[str] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document)
        if size >= characters:
            yield group
            group, size = [], 0
    if group:
        yield group


def write_shard(
    path: Path, documents: list[str], tokenizer: Tokenizer, dtype: np.dtype, advance: Callable[[int], Any]
) -> dict[str, Any]:
    """Tokenises one group into one file and gives its line of the manifest; `advance` is told the tokens done.

    Depends on nothing else, so groups may be done in any order, by any process, and a finished one kept.
    """
    digest = hashlib.sha256()
    tokens = 0
    with path.open("wb") as file:
        for ids in encode_documents(documents, tokenizer):
            raw = np.asarray(ids, dtype=dtype).tobytes()
            file.write(raw)
            digest.update(raw)
            tokens += len(ids)
            advance(len(ids))
    return {"file": path.name, "tokens": tokens, "sha256": digest.hexdigest()}


def encode_documents(documents: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Ids of the documents with one EOS after each, in runs that need not end where a document does."""
    texts: list[str] = []
    ends: list[bool] = []
    size = 0
    for document in documents:
        for part, end in _parts(document):
            texts.append(part)
            ends.append(end)
            size += len(part)
            if size >= _BATCH_CHARACTERS:
                yield from _encode_run(texts, ends, tokenizer)
                texts, ends, size = [], [], 0
    yield from _encode_run(texts, ends, tokenizer)


def _encode_run(texts: list[str], ends: list[bool], tokenizer: Tokenizer) -> Iterator[list[int]]:
    for ids, end in zip(tokenizer.encode_batch(texts), ends, strict=True):
        yield [*ids, tokenizer.eos_id] if end else ids


def _parts(document: str) -> Iterator[tuple[str, bool]]:
    """A very long document cut before a single blank between two words, where tokenizers cut anyway; True: its end."""
    start = 0
    while len(document) - start > _BATCH_CHARACTERS:
        earliest = start + _BATCH_CHARACTERS // 2
        cut = _BETWEEN_WORDS.search(document, earliest, start + _BATCH_CHARACTERS)
        stop = cut.start() if cut else start + _BATCH_CHARACTERS
        yield document[start:stop], False
        start = stop
    yield document[start:], True


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int], None]]:
    """Shows the tokens done so far where someone watches."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn(what), TextColumn("{task.completed:,} tokens"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda tokens: progress.advance(task, tokens)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
