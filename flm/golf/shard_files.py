"""Reading and writing the shard files of the parameter-golf track.

A file holds 256 little-endian int32 (magic, version, number of tokens, zeros), then the tokens as little-endian uint16.
Documents follow one another, and each begins with BOS.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from flm import atomic
from flm.data.cache import TokenFiles

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 1024
TOKENS_PER_SHARD = 100_000_000


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Writes tokens (n,) to one file, whole or not at all. Raises ValueError if an id is not in [0, 65536)."""
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < 1 << 16:
        raise ValueError(f"{path}: token ids must lie in [0, 65536)")
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    with atomic.draft(path) as partial, partial.open("wb") as file:
        file.write(header.tobytes())
        file.write(np.asarray(tokens, dtype="<u2").tobytes())


def write_shards(
    folder: Path, split: str, runs: Iterable[np.ndarray], name: str = "fineweb", per_shard: int = TOKENS_PER_SHARD
) -> list[Path]:
    """Writes name_split_000000.bin and so on, and returns their paths. Each but the last has exactly `per_shard` tokens.

    Args:
        split: "train" or "val", as in the track's file names.
        runs: the tokens in order, in pieces of any size.
    """
    written: list[Path] = []
    waiting: list[np.ndarray] = []
    size = 0

    def flush(tokens: np.ndarray) -> None:
        path = folder / f"{name}_{split}_{len(written):06d}.bin"
        write_shard(path, tokens)
        written.append(path)

    for run in runs:
        waiting.append(np.asarray(run))
        size += len(run)
        while size >= per_shard:
            tokens = np.concatenate(waiting)
            flush(tokens[:per_shard])
            waiting, size = [tokens[per_shard:]], size - per_shard
    if size:
        flush(np.concatenate(waiting))
    return written


def token_count(path: Path) -> int:
    """The number of tokens in a shard file.

    Raises:
        ValueError: the file cannot be read, is no shard, or does not have the size that its header implies.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = np.frombuffer(file.read(HEADER_BYTES), dtype="<i4") if size >= HEADER_BYTES else ()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    if len(header) < 3 or header[0] != MAGIC or header[1] != VERSION:
        raise ValueError(f"{path} is no token shard: it does not begin with {MAGIC}, version {VERSION}")
    count = int(header[2])
    if count < 0 or size != HEADER_BYTES + 2 * count:
        raise ValueError(f"{path} is damaged: {size} bytes, where its {count} tokens take {HEADER_BYTES + 2 * count}")
    return count


class ShardStream(TokenFiles):
    """The tokens of consecutive shard files. Reading an id that is not below vocab_size raises ValueError.

    Args:
        paths: the files in reading order.
        vocab_size: V.

    Raises:
        ValueError: as `token_count`.
    """

    def __init__(self, paths: list[Path], vocab_size: int):
        super().__init__(token_count(path) for path in paths)
        self.paths, self.vocab_size = paths, vocab_size

    def _part(self, file: int, start: int, stop: int) -> np.ndarray:
        found = self._map(file)[start:stop]
        if found.size and int(found.max()) >= self.vocab_size:
            raise ValueError(
                f"{self.paths[file]}: id {int(found.max())} is not below the tokenizer's {self.vocab_size}: "
                "give the tokenizer it was written with (tokenizer.path)"
            )
        return found

    def _open(self, file: int) -> np.ndarray:
        return np.memmap(self.paths[file], dtype="<u2", mode="r", offset=HEADER_BYTES)
