"""Held-out text to hold samples against: as many rows, as long, made as the training data were."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from flm.data.corpora.corpus import Corpus
from flm.data.documents import Split
from flm.data.shards import encode_documents
from flm.data.tokenizers import Tokenizer

# Of the held-out split, from its start: enough to know its 3-grams, few enough to be tokenised in seconds.
MAX_TOKENS = 2_000_000


@dataclass(frozen=True)
class RealText:
    """
    Attributes:
        source: the corpus, in words.
        blocks: held-out rows of one length, in the order of the corpus.
        chosen: indices of those to compare with, evenly spaced.
    """

    source: str
    blocks: list[list[int]]
    chosen: list[int]

    @property
    def rows(self) -> list[list[int]]:
        return [self.blocks[index] for index in self.chosen]


def held_out_blocks(corpus: Corpus, tokenizer: Tokenizer, length: int, count: int) -> RealText:
    """`count` rows of `length` tokens (all there are, if fewer) spread over the first MAX_TOKENS of the held-out split.

    They are what the corpus makes rows of: blocks of text, pairs of prompt and response with their end and padding, puzzles.
    """
    rows = corpus.blocks(_InMemory(corpus, tokenizer), "valid", length, tokenizer, 0)
    limit = max(1, MAX_TOKENS // length)
    blocks = [rows[index].tolist() for _, index in zip(range(limit), one_row_each(rows), strict=False)]
    kept = min(count, len(blocks))
    return RealText(corpus.describe(), blocks, [index * len(blocks) // kept for index in range(kept)])


def one_row_each(rows: Any) -> range:
    """Of rows that show the same text several times, the last of each: the one of which most is to be written."""
    variants = getattr(rows, "variants", 1)
    return range(variants - 1, len(rows), variants)


class _InMemory:
    """What a corpus asks of its token cache to make rows: the beginning of its held-out split, read when it is asked for."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer):
        self._corpus, self._tokenizer = corpus, tokenizer
        self._documents = 0

    def tokens(self, split: Split) -> "_Stream":
        ids: list[int] = []
        self._documents = 0
        for run in encode_documents(self._counted(split), self._tokenizer):
            ids += run
            if len(ids) >= MAX_TOKENS:
                self._documents = ids.count(self._tokenizer.eos_id)
                break
        return _Stream(ids)

    def documents(self, split: Split) -> int:
        return self._documents

    def _counted(self, split: Split) -> Iterator[str]:
        for document in self._corpus.documents(split):
            self._documents += 1
            yield document


class _Stream:
    """What rows ask of a stream."""

    def __init__(self, ids: list[int]):
        self._ids = np.array(ids, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._ids[start:stop].copy()
