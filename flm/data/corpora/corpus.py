"""A corpus gives documents of text, split once and for all into training and validation.

Split by document: a document's place depends on its text and the split seed alone, so copies of one document never
stand on both sides, and the order of files does not matter.
"""

import hashlib
import os
from array import array
from collections.abc import Iterator
from typing import Any, Literal, Protocol

Split = Literal["train", "valid"]
SPLITS: tuple[Split, ...] = ("train", "valid")


class Normaliser(Protocol):
    """Rewrites every document before anything else sees it."""

    def __call__(self, text: str) -> str: ...

    def fingerprint(self) -> dict[str, Any]:
        """Plain values that determine what it does."""
        ...


class Corpus:
    """Base of all corpora: subclasses give `source()` and `source_fingerprint()`.

    Args:
        valid_fraction: share of the documents held out, in (0, 1); at least one document on each side.
        split_seed: which documents they are.
        normaliser: applied to each document; documents it leaves empty are dropped. None: text as it is.
        wrap: how the documents are cut into blocks, a key of `flm.data.blocks.FRAMES`.
        cache_dir: folder that holds the tokenised documents; None: a temporary one, gone when the process ends.
    """

    def __init__(
        self,
        valid_fraction: float = 0.05,
        split_seed: int = 0,
        normaliser: Normaliser | None = None,
        wrap: str = "plain",
        cache_dir: str | os.PathLike[str] | None = None,
    ):
        if not 0 < valid_fraction < 1:
            raise ValueError(f"data.valid_fraction must lie between 0 and 1, not {valid_fraction}")
        self.valid_fraction, self.split_seed, self.normaliser = valid_fraction, split_seed, normaliser
        self.wrap, self.cache_dir = wrap, cache_dir
        self._threshold: int | None = None

    def source(self) -> Iterator[str]:
        """All documents before the split, always in the same order."""
        raise NotImplementedError

    def source_fingerprint(self) -> dict[str, Any]:
        """Plain values that determine what `source` gives."""
        raise NotImplementedError

    def describe(self) -> str:
        """A few words for logs and reports."""
        raise NotImplementedError

    def documents(self, split: Split) -> Iterator[str]:
        """The documents of one split, normalised, in the corpus's order; none is empty."""
        for document in self._of_split(split):
            text = document if self.normaliser is None else self.normaliser(document)
            if text:
                yield text

    def fingerprint(self) -> dict[str, Any]:
        """Plain values that determine the documents of both splits."""
        return {
            "corpus": type(self).__name__,
            "source": self.source_fingerprint(),
            "valid_fraction": self.valid_fraction,
            "split_seed": self.split_seed,
            "normaliser": None if self.normaliser is None else self.normaliser.fingerprint(),
        }

    def _of_split(self, split: Split) -> Iterator[str]:
        if self._threshold is None:
            self._threshold = self._find_threshold()
        held_out = split == "valid"
        return (text for text in self.source() if (self._score(text) <= self._threshold) == held_out)

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
