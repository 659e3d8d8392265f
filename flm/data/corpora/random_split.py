"""Holding out documents by chance, once and for all.

A document's side depends on its text and the split seed alone, so copies of one document never stand on both sides, and
the order of files does not matter.
"""

import hashlib
import os
from array import array
from collections.abc import Iterator
from typing import Any

from flm.data.corpora.corpus import Corpus
from flm.data.documents import Normaliser, Split
from flm.data.frames import FrameName
from flm.ranges import Count, Index, OpenShare, Text


class RandomSplitCorpus(Corpus):
    """Base of corpora that have one source: subclasses give `source()`, `source_fingerprint()` and `describe()`.

    Args:
        valid_fraction: share of the documents held out, in (0, 1); at least one document on each side.
        split_seed: which documents they are.
        normaliser, wrap, cache_dir, processes: see `Corpus`.
    """

    def __init__(
        self,
        valid_fraction: OpenShare = 0.05,
        split_seed: Index = 0,
        normaliser: Normaliser | None = None,
        wrap: FrameName = "plain",
        cache_dir: Text | os.PathLike[str] | None = None,
        processes: Count | None = None,
    ):
        super().__init__(normaliser, wrap, cache_dir, processes)
        self.valid_fraction, self.split_seed = valid_fraction, split_seed
        self._threshold: int | None = None

    def source(self) -> Iterator[str]:
        """All documents before the split, always in the same order."""
        raise NotImplementedError

    def raw_documents(self, split: Split) -> Iterator[str]:
        if self._threshold is None:
            self._threshold = self._find_threshold()
        held_out = split == "valid"
        return (text for text in self.source() if (self._score(text) <= self._threshold) == held_out)

    def fingerprint(self) -> dict[str, Any]:
        return super().fingerprint() | {"valid_fraction": self.valid_fraction, "split_seed": self.split_seed}

    def _find_threshold(self) -> int:
        """The score up to which a document is held out, so that the wanted number of documents is."""
        scores = sorted(set(array("Q", map(self._score, self.source()))))
        if len(scores) < 2:
            raise ValueError(
                f"data: {self.describe()} holds {len(scores)} different document(s): validation needs at least 2; add "
                "text, or name a file of held-out text with data.valid_path"
            )
        held_out = min(max(1, round(self.valid_fraction * len(scores))), len(scores) - 1)
        return scores[held_out - 1]

    def _score(self, text: str) -> int:
        key = self.split_seed.to_bytes(8, "little", signed=True)
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "little")
