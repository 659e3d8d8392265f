"""A folder of token shards as a corpus. The text was tokenised elsewhere, and its tokens are read as they are."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flm.data.blocks import FrameName
from flm.data.byte_table import ByteTable
from flm.data.corpora.corpus import Corpus
from flm.data.corpora.opened import found_instead
from flm.data.documents import SPLITS, Split
from flm.data.tokenizers import Tokenizer
from flm.golf.shard_files import HEADER_BYTES, ShardStream, token_count
from flm.ranges import Existing, Text

_NAMES: dict[Split, str] = {"train": "train", "valid": "val"}  # names of the splits in file names


class ShardFolder:
    """Opened shards, with the interface of a `TokenCache`."""

    def __init__(self, files: dict[Split, list[Path]], tokenizer: Tokenizer):
        self.tokenizer, self.vocab_size = tokenizer, tokenizer.vocab_size
        self._streams = {split: ShardStream(paths, tokenizer.vocab_size) for split, paths in files.items() if paths}

    def tokens(self, split: Split) -> ShardStream:
        """The tokens of a split. Raises ValueError if there are no files of it."""
        if split not in self._streams:
            raise ValueError(f"data.path: there is no *_{_NAMES[split]}_*.bin, so no {split} split")
        return self._streams[split]

    def bytes_per_token(self, split: Split) -> float:
        """Bytes of text per token of a split. The first token counts as following BOS."""
        stream, table = self.tokens(split), ByteTable.of(self.tokenizer)
        previous, total = self.tokenizer.bos_id, 0
        for start in range(0, len(stream), 1 << 22):
            ids = torch.from_numpy(stream.read(start, min(len(stream), start + (1 << 22))))
            total += int(table.bytes(ids, torch.cat((ids.new_tensor([previous]), ids[:-1]))).sum())
            previous = int(ids[-1])
        return total / len(stream)


class TokenShardCorpus(Corpus):
    """The files *_train_*.bin and *_val_*.bin of a folder, sorted by name in each split; see `flm.golf.shard_files`.

    The tokenizer must be the one that the files were written with, and cannot be learned from them.

    Args:
        path: the folder.
        wrap: as in `Corpus`.
        cache_dir: a folder in which a tokenizer may be looked up by name; nothing is written to it.
    """

    def __init__(self, path: Existing, wrap: FrameName = "plain", cache_dir: Text | os.PathLike[str] | None = None):
        super().__init__(None, wrap, cache_dir)
        self.path = Path(path)
        self._opened: ShardFolder | None = None

    @property
    def splits(self) -> tuple[Split, ...]:
        files = self._files()
        return tuple(split for split in SPLITS if files[split])

    def open(self, tokenizer: Tokenizer, root: Path) -> ShardFolder:
        self._opened = ShardFolder(self._files(), tokenizer)
        return self._opened

    def blocks(self, cache: Any, split: Split, length: int, tokenizer: Tokenizer, seed: int) -> Any:
        """As `Corpus.blocks`. A cache of another kind, such as a judge's, is ignored, and the shards are read instead."""
        shards = cache if isinstance(cache, ShardFolder) else self.open(tokenizer, self.path)
        return super().blocks(shards, split, length, tokenizer, seed)

    def raw_documents(self, split: Split) -> Iterator[str]:
        """The decoded text of a split, document by document.

        Raises:
            ValueError: the corpus was not opened with a tokenizer, as when a tokenizer is to be learned from it.
        """
        if self._opened is None:
            raise ValueError(f"data.path={self.path}: tokens are no text to learn a tokenizer from: give tokenizer.path")
        stream, tokenizer = self._opened.tokens(split), self._opened.tokenizer
        waiting: list[int] = []
        for start in range(0, len(stream), 1 << 20):
            for run in _documents(stream.read(start, min(len(stream), start + (1 << 20))), tokenizer.bos_id):
                if run[0] == tokenizer.bos_id and waiting:
                    yield tokenizer.decode(waiting, skip_special=True)
                    waiting = []
                waiting += run.tolist()
        if waiting:
            yield tokenizer.decode(waiting, skip_special=True)

    def source_fingerprint(self) -> dict[str, Any]:
        """The number of tokens and the CRC-32 of the first 64 KiB of tokens by file name. These tell sets of shards apart."""
        found = {}
        for path in (path for paths in self._files().values() for path in paths):
            with path.open("rb") as file:
                file.seek(HEADER_BYTES)
                found[path.name] = [token_count(path), zlib.crc32(file.read(1 << 16))]
        return {"shards": found}

    def describe(self) -> str:
        return f"token shards in {self.path}"

    def _files(self) -> dict[Split, list[Path]]:
        if not self.path.is_dir():
            raise ValueError(f"data.path={self.path} is no folder: name one with *_train_*.bin and *_val_*.bin")
        found = {split: sorted(self.path.glob(f"*_{name}_*.bin")) for split, name in _NAMES.items()}
        if not any(found.values()):
            raise ValueError(
                f"data.path={self.path} holds no *_train_*.bin or *_val_*.bin{found_instead(self.path, ('.bin',))}"
            )
        return found


def _documents(tokens: np.ndarray, bos_id: int) -> list[np.ndarray]:
    """The tokens, cut before every BOS, without empty pieces."""
    cuts = np.flatnonzero(tokens == bos_id)
    return [piece for piece in np.split(tokens, cuts) if piece.size]
