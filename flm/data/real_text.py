"""Held-out text to hold samples against: as many blocks, as long, cut as the training data were."""

from dataclasses import dataclass

import numpy as np

from flm.data.blocks import TokenBlocks, frame_of
from flm.data.corpora.corpus import Corpus
from flm.data.shards import encode_documents
from flm.data.tokenizers import Tokenizer

# Of the held-out split, from its start: enough to know its 3-grams, few enough to be tokenised in seconds.
MAX_TOKENS = 2_000_000


@dataclass(frozen=True)
class RealText:
    """
    Attributes:
        source: the corpus, in words.
        blocks: held-out blocks of one length, in the order of the corpus.
        chosen: indices of those to compare with, evenly spaced.
    """

    source: str
    blocks: list[list[int]]
    chosen: list[int]

    @property
    def rows(self) -> list[list[int]]:
        return [self.blocks[index] for index in self.chosen]


def held_out_blocks(corpus: Corpus, tokenizer: Tokenizer, length: int, count: int) -> RealText:
    """`count` blocks of `length` tokens (all there are, if fewer) spread over the first MAX_TOKENS of the held-out split."""
    ids: list[int] = []
    for run in encode_documents(corpus.documents("valid"), tokenizer):
        ids += run
        if len(ids) >= MAX_TOKENS:
            break
    cut = TokenBlocks(_InMemory(ids), length, frame_of(corpus.wrap, tokenizer))
    blocks = [cut[index].tolist() for index in range(len(cut))]
    kept = min(count, len(blocks))
    return RealText(corpus.describe(), blocks, [index * len(blocks) // kept for index in range(kept)])


class _InMemory:
    """What TokenBlocks asks of a stream."""

    def __init__(self, ids: list[int]):
        self._ids = np.array(ids, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._ids[start:stop].copy()
