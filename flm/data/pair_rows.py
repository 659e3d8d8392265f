"""Rows of prompt and response from a token cache, as a Dataset. L row length, V vocabulary."""

import logging
import random
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flm.data.documents import Split
from flm.data.layouts import Layout, Row
from flm.data.tokenizers import Tokenizer
from flm.draws import mix_seed

_COUNTED = 20_000  # rows, evenly spaced, that token counts are taken from

log = logging.getLogger(__name__)


class PairCache(Protocol):
    """The part of `TokenCache` that pairs need."""

    def tokens(self, split: Split) -> Any: ...

    def documents(self, split: Split) -> int: ...


class PairRows(Dataset[Tensor]):
    """Rows (L,) int64 of all pairs of a split that fit. Each pair makes `layout.variants` rows.

    Random choices in a row depend on the seed and the row's number alone.

    Args:
        cache: of a corpus whose documents are prompt, response, prompt, response, ...
        documents: documents of a pair: 2, or 1 if there are only responses.

    Raises:
        ValueError: no pair fits, or a text spells the token that ends documents.
    """

    def __init__(
        self,
        cache: "PairCache",
        split: Split,
        layout: Layout,
        tokenizer: Tokenizer,
        length: int,
        documents: int = 2,
        seed: int = 0,
    ):
        self.stream, self.layout, self.tokenizer, self.length = cache.tokens(split), layout, tokenizer, length
        self.seed, self.payload, self._documents = seed, length, documents
        self._ends = self._find_ends()
        if len(self._ends) != cache.documents(split):
            raise ValueError(
                f"data: a text of the {split} split spells {tokenizer.token(tokenizer.eos_id)!r}, the end of a document"
            )
        pairs = len(self._ends) // documents
        self._kept = np.array([pair for pair in range(pairs) if self._fits(pair)], dtype=np.int64)
        if not len(self._kept):
            raise ValueError(f"data: none of the {pairs} pairs of the {split} split fits model.length={length}")
        if len(self._kept) < pairs:
            log.warning(
                "data: %d of %d %s pairs do not fit model.length=%d and are left out",
                pairs - len(self._kept),
                pairs,
                split,
                length,
            )

    @property
    def variants(self) -> int:
        """Rows of each pair, which follow one another."""
        return self.layout.variants

    def __len__(self) -> int:
        return len(self._kept) * self.layout.variants

    def __getitem__(self, index: int) -> Tensor:
        return self.row(index).tokens

    def row(self, index: int) -> Row:
        """Tokens with their weight and documents."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} is not in [0, {len(self)})")
        pair, variant = divmod(index, self.layout.variants)
        prompt, response = self.pair(int(self._kept[pair]))
        rng = random.Random(mix_seed(self.seed, index))
        return self.layout.row(prompt, response, self.tokenizer, self.length, variant, rng)

    def pair(self, index: int) -> tuple[list[int], list[int]]:
        """Ids of the index-th prompt and response of the split, counting pairs that do not fit."""
        ends = self._ends[index * self._documents : (index + 1) * self._documents]
        start = 0 if index == 0 else int(self._ends[index * self._documents - 1]) + 1
        ids = self.stream.read(start, int(ends[-1])).tolist()
        if self._documents == 1:
            return [], ids
        cut = int(ends[0]) - start
        return ids[:cut], ids[cut + 1 :]

    def token_counts(self, vocab_size: int) -> Tensor:
        """How often each id is a target, int64 (V,), in at most 20,000 rows, evenly spaced."""
        counted = min(len(self), _COUNTED)
        counts = torch.zeros(vocab_size, dtype=torch.long)
        for index in range(counted):
            row = self.row(index * len(self) // counted)
            counts += torch.bincount(row.tokens[row.weight > 0], minlength=vocab_size)
        return counts

    def _fits(self, pair: int) -> bool:
        size = self.layout.size(*self.pair(pair), self.tokenizer)
        return size is not None and size <= self.length

    def _find_ends(self) -> np.ndarray:
        found, step = [], 1 << 24
        for start in range(0, len(self.stream), step):
            tokens = self.stream.read(start, min(len(self.stream), start + step))
            found.append(np.flatnonzero(tokens == self.tokenizer.eos_id) + start)
        return np.concatenate(found)
