"""Tokenised documents on disk: one folder per (corpus, tokenizer), memory-mapped.

    manifest.json       what was tokenised with what, counts, SHA-256 of every shard and CRC-32 of each of its chunks
    train-00000.bin     token ids, little-endian uint16 (V <= 65536) or uint32, documents in order, one EOS after each
    train-counts.bin    how often each id occurs in the split, little-endian int64
    train-sound.bin     which chunks of the shards were verified, a byte each
    valid-00000.bin

A shard holds whole documents. They are cut into blocks only when read, so all lengths share a cache.

Damaged data is never used. A cache of up to a gibibyte is verified whole when it is opened. In a larger one each chunk is
verified when a process first reads from it. Either happens once for all processes and runs, as long as a shard's size, times
and inode stay the same. CRC-32 finds every error burst within 32 bits, and misses one in 2^32 of the others.
"""

import hashlib
import json
import logging
import zlib
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from flm.atomic import writable_folder
from flm.data.building import build, manifest_digest
from flm.data.documents import Documents, Split
from flm.data.shards import CHUNK_BYTES, Sound
from flm.data.tokenizers import Tokenizer
from flm.handed_in import read_json, regular_file

FORMAT = 2
_VERIFY_BYTES = 1 << 30  # about a second; more would be minutes at every start
_MANIFEST_BYTES = 1 << 28
_MAX_OPEN = 256  # every map holds a file open, and a process may have 1,024

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
            self.manifest: dict[str, Any] = read_json(manifest, _MANIFEST_BYTES)
            said = self.manifest.pop("digest", None)
            if said is not None and said != manifest_digest(self.manifest):
                raise ValueError("changed after it was written")
            self.vocab_size: int = self.manifest["vocab_size"]
            dtype = np.dtype(self.manifest["dtype"])
            found = self.manifest.get("format")
            if found == FORMAT:
                self._streams = {
                    split: TokenStream(
                        folder,
                        [(shard["file"], shard["tokens"], shard["crc32"]) for shard in facts["shards"]],
                        dtype,
                        (facts["counts"]["file"], facts["counts"]["sha256"]),
                    )
                    for split, facts in self.manifest["splits"].items()
                }
                if dtype.str not in ("<u2", "<u4") or type(self.vocab_size) is not int or not 0 < self.vocab_size <= 1 << 32:
                    raise ValueError(f"dtype {dtype}, vocab_size {self.vocab_size!r}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise damaged(manifest, repr(error)) from error
        if found != FORMAT:
            raise damaged(manifest, f"format {found}, not {FORMAT}")
        for stream in self._streams.values():
            stream.check_sizes()
        self._check_counts(manifest)
        if sum(len(stream) for stream in self._streams.values()) * dtype.itemsize <= _VERIFY_BYTES:
            for stream in self._streams.values():
                stream.verify()

    def _check_counts(self, manifest: Path) -> None:
        """Raises ValueError where the manifest's numbers differ from those of its shards."""
        end = (self.manifest.get("wrapping") or {}).get("after_each_document")
        for split, stream in self._streams.items():
            facts, counts = self.manifest["splits"][split], stream.counts(self.vocab_size)
            numbers = {key: facts.get(key) for key in ("documents", "bytes", "tokens")}
            if not all(type(number) is int and number >= 0 for number in numbers.values()):
                raise damaged(manifest, f"{split}: documents, bytes and tokens must be whole numbers")
            if not numbers["tokens"] == len(stream) == counts.sum() or counts.min() < 0:
                raise damaged(manifest, f"{split}: {numbers['tokens']} tokens, its shards hold {len(stream)}")
            ends = counts[end] if end is not None else numbers["documents"]
            if numbers["documents"] > ends:
                raise damaged(manifest, f"{split}: {numbers['documents']} documents, of which {ends} end")

    def tokens(self, split: Split) -> "TokenStream":
        """All tokens of a split as one stream, an EOS after each document."""
        if split not in self._streams:
            raise ValueError(f"data: this corpus has no {split} split, only {', '.join(self._streams)}")
        return self._streams[split]

    def documents(self, split: Split) -> int:
        """The number of documents of a split."""
        return self.manifest["splits"][split]["documents"]

    def bytes_per_token(self, split: Split) -> float:
        """UTF-8 bytes of the documents divided by the tokens of the stream, EOS tokens included."""
        counts = self.manifest["splits"][split]
        return counts["bytes"] / counts["tokens"]


class TokenFiles:
    """Tokens of consecutive files as one read-only sequence. Each process opens a file on first use.

    Subclasses define `_part(file, start, stop)`, the ids in a range of one file, and `_open(file)`, its memory map.

    Args:
        sizes: tokens of each file.
    """

    def __init__(self, sizes: Iterable[int]):
        self._starts = [0, *accumulate(sizes)]
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop-1 as a new int64 array (stop - start,)."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"[{start}, {stop}) is not within {len(self)} tokens")
        out = np.empty(stop - start, dtype=np.int64)
        file, position = bisect_right(self._starts, start) - 1, start
        while position < stop:
            end, offset = min(stop, self._starts[file + 1]), self._starts[file]
            out[position - start : end - start] = self._part(file, position - offset, end - offset)
            position, file = end, file + 1
        return out

    def counts(self, vocab_size: int, stop: int | None = None) -> np.ndarray:
        """How often each id occurs before position `stop` (None: in all), int64 (vocab_size,)."""
        return self._count(0, len(self) if stop is None else stop, vocab_size)

    def _count(self, start: int, stop: int, vocab_size: int) -> np.ndarray:
        total = np.zeros(vocab_size, dtype=np.int64)
        for begin in range(start, stop, 1 << 24):
            total += np.bincount(self.read(begin, min(stop, begin + (1 << 24))), minlength=vocab_size)
        return total

    def _map(self, file: int) -> np.ndarray:
        if file not in self._maps:
            if len(self._maps) >= _MAX_OPEN:
                self._maps.pop(next(iter(self._maps)))
            self._maps[file] = self._open(file)
        return self._maps[file]

    def _part(self, file: int, start: int, stop: int) -> np.ndarray:
        raise NotImplementedError

    def _open(self, file: int) -> np.ndarray:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a pickled memory map is a copy of the file


class TokenStream(TokenFiles):
    """Tokens of the shards of a cache, each chunk verified once.

    Args:
        folder: holds the files.
        shards: name, number of tokens and CRC-32 of each chunk (8 hexadecimal digits each, one after the other).
        dtype: of a token.
        totals: file with the counts of all ids, int64 (V,), and its SHA-256.
    """

    def __init__(self, folder: Path, shards: list[tuple[str, int, str]], dtype: np.dtype, totals: tuple[str, str]):
        super().__init__(tokens for _, tokens, _ in shards)
        self._folder, self._dtype, self._totals = folder, dtype, totals
        self._names = [name for name, _, _ in shards]
        self._checks = [bytes.fromhex(checks) for _, _, checks in shards]
        self._per_chunk = CHUNK_BYTES // dtype.itemsize
        self._sound = Sound(folder / totals[0].replace("counts", "sound"), self._names, [len(c) // 4 for c in self._checks])

    def counts(self, vocab_size: int, stop: int | None = None) -> np.ndarray:
        stop = len(self) if stop is None else stop
        if stop < len(self) // 2:
            return self._count(0, stop, vocab_size)
        total = self._stored_counts()
        if len(total) > vocab_size:
            raise damaged(self._folder / self._totals[0], f"{len(total)} ids, where the vocabulary has {vocab_size}")
        return np.pad(total, (0, vocab_size - len(total))) - self._count(stop, len(self), vocab_size)

    def check_sizes(self) -> None:
        """Raises ValueError where a file is missing or not of the size that the manifest says."""
        for shard, name in enumerate(self._names):
            if not _is_plain(name):
                raise damaged(self._folder / "manifest.json", f"names {name!r}, which is no file of this folder")
            path, tokens = self._folder / name, self._starts[shard + 1] - self._starts[shard]
            if not path.is_file() or path.stat().st_size != tokens * self._dtype.itemsize:
                raise damaged(path, f"not {tokens} tokens of {self._dtype}")
            if len(self._checks[shard]) // 4 != -(-tokens // self._per_chunk):
                raise damaged(self._folder / "manifest.json", f"wrong number of CRC-32 for {name}")

    def verify(self) -> None:
        """Reads everything; raises ValueError where a checksum differs."""
        for shard in range(len(self._names)):
            self._part(shard, 0, self._starts[shard + 1] - self._starts[shard])
        self._stored_counts()

    def _part(self, file: int, start: int, stop: int) -> np.ndarray:
        tokens = self._map(file)
        for chunk in range(start // self._per_chunk, -(-stop // self._per_chunk)):
            if not self._sound.known(file, chunk):
                found = zlib.crc32(tokens[chunk * self._per_chunk : (chunk + 1) * self._per_chunk])
                if found != int.from_bytes(self._checks[file][4 * chunk : 4 * chunk + 4], "big"):
                    raise damaged(self._folder / self._names[file], f"CRC-32 of chunk {chunk} differs from the manifest's")
                self._sound.found(file, chunk)
        return tokens[start:stop]

    def _stored_counts(self) -> np.ndarray:
        name, sha256 = self._totals
        if not _is_plain(name):
            raise damaged(self._folder / "manifest.json", f"names {name!r}, which is no file of this folder")
        try:
            raw = regular_file(self._folder / name, 8 << 32).read_bytes()
        except (OSError, ValueError) as error:
            raise damaged(self._folder / name, getattr(error, "strerror", None) or str(error)) from error
        if hashlib.sha256(raw).hexdigest() != sha256 or len(raw) % 8:
            raise damaged(self._folder / name, "SHA-256 differs from the manifest's")
        return np.frombuffer(raw, dtype="<i8").astype(np.int64)

    def _open(self, file: int) -> np.ndarray:
        return np.memmap(self._folder / self._names[file], dtype=self._dtype, mode="r")


def open_cache(corpus: Documents, tokenizer: Tokenizer, root: Path) -> TokenCache:
    """The cache of a corpus and a tokenizer below `root`, built if it is not there. Several processes may call at once."""
    fingerprint = {"format": FORMAT, "source": corpus.fingerprint(), "tokenizer": tokenizer.fingerprint()}
    name = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / name
    if not folder.exists():
        writable_folder(root, "data.cache_dir")  # fails before hours of tokenising, not after
        lock = FileLock(root / f"{name}.lock")  # released by the system when a builder dies
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another process to tokenise %s into %s", corpus.describe(), folder)
            lock.acquire()
        try:
            if not folder.exists():
                build(corpus, tokenizer, fingerprint, folder)
        finally:
            lock.release()
    return TokenCache(folder)


def damaged(file: Path, what: str) -> ValueError:
    return ValueError(f"{file} is damaged or incomplete ({what}): delete the folder {file.parent} to build it anew")


def _is_plain(name: Any) -> bool:
    """Whether a name from a manifest is that of a file directly in the folder."""
    return isinstance(name, str) and Path(name).name == name
