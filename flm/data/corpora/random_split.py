"""A random split into training and held-out documents.

The hash of a document's text and the split seed decides its side. So copies of a document are on one side, and the order of
files does not matter. A document that would be most of a side is cut into pieces, which count as documents.
"""

import hashlib
import logging
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np

from flm.data.blocks import FrameName
from flm.data.corpora.corpus import Corpus
from flm.data.documents import PIECE_CHARACTERS, Normaliser, Split, pieces
from flm.ranges import Count, Folder, Index, OpenShare

_PIECES_OF_A_SIDE = 16  # pieces are so short that this many fill the smaller side

log = logging.getLogger(__name__)


class RandomSplitCorpus(Corpus):
    """Base of corpora with one source: subclasses define `source()`, `source_fingerprint()` and `describe()`.

    Args:
        valid_fraction: share of the characters held out, in (0, 1); at least one document is on each side.
        split_seed: of the choice of documents.
        normaliser, wrap, cache_dir, processes: see `Corpus`.

    Attributes:
        divisible: whether a document may be cut.
    """

    divisible = True

    def __init__(
        self,
        valid_fraction: OpenShare = 0.05,
        split_seed: Index = 0,
        normaliser: Normaliser | None = None,
        wrap: FrameName = "plain",
        cache_dir: Folder | None = None,
        processes: Count | None = None,
    ):
        super().__init__(normaliser, wrap, cache_dir, processes)
        self.valid_fraction, self.split_seed = valid_fraction, split_seed
        self._threshold: int | None = None
        self._longest: int | None = None  # documents of more characters are cut; None: none is

    def source(self) -> Iterator[str]:
        """All documents before the split, always in the same order."""
        raise NotImplementedError

    def raw_documents(self, split: Split) -> Iterator[str]:
        if self._threshold is None:
            self._threshold = self._find_threshold()
        held_out = split == "valid"
        return (text for text in self._documents() if (self._score(text) <= self._threshold) == held_out)

    def fingerprint(self) -> dict[str, Any]:
        rule = {"valid_fraction": self.valid_fraction, "split_seed": self.split_seed, "split_by": "characters"}
        return super().fingerprint() | rule

    def _documents(self) -> Iterator[str]:
        for document in self.source():
            if self._longest is not None and len(document) > self._longest:
                yield from pieces(document, max(PIECE_CHARACTERS, 2 * self._longest // _PIECES_OF_A_SIDE))
            else:
                yield document

    def _find_threshold(self) -> int:
        """The highest score that is held out, chosen so that the share of text is as near `valid_fraction` as it can be."""
        scores, sizes = self._scores_and_sizes()
        side = min(self.valid_fraction, 1 - self.valid_fraction) * sizes.sum()
        longest = max(PIECE_CHARACTERS, int(side / 2))
        if self.divisible and (sizes > longest).any():
            self._longest = longest
            log.warning(
                "data: %d documents of %s would each be most of the %s side: they are cut into pieces, so that some can be "
                "held out and most trained on",
                int((sizes > longest).sum()),
                self.describe(),
                "held-out" if self.valid_fraction <= 0.5 else "training",
            )
            scores, sizes = self._scores_and_sizes()
        distinct, group = np.unique(scores, return_inverse=True)
        if len(distinct) < 2:
            raise ValueError(
                f"data: {self.describe()} holds {len(distinct)} different document(s): validation needs at least 2; add "
                "text, or name a file of held-out text with data.valid_path"
            )
        held_out = np.cumsum(np.bincount(group, weights=sizes))[:-1]  # characters held out with the 1, 2, ... lowest scores
        return int(distinct[np.abs(held_out - self.valid_fraction * sizes.sum()).argmin()])

    def _scores_and_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        scores, sizes = array("Q"), array("Q")
        for text in self._documents():
            scores.append(self._score(text))
            sizes.append(max(1, len(text)))
        return np.array(scores), np.array(sizes)

    def _score(self, text: str) -> int:
        key = self.split_seed.to_bytes(8, "little", signed=True)
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "little")
