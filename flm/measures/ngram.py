"""An n-gram model of held-out text: a judge of samples that needs no network and no download.

The cross-entropy of samples under it measures how far they are from real text in short contexts. It is blind to everything
longer, so read it beside the same number for real text.

Interpolated Witten-Bell smoothing (Witten and Bell 1991; Chen and Goodman, cmp-lg/9606011). With c(h w) the number of times
that w followed the context h, C(h) = sum_w c(h w), and T(h) the number of different tokens that followed h,

    p(w | h) = (c(h w) + T(h) p(w | h')) / (C(h) + T(h)),      h' = h without its first token,

and p(w | h) = p(w | h') if nothing ever followed h. Below the unigrams is the uniform 1 / V. Of the C tokens that followed h,
T were new at their time, so the next one is taken to be new with probability T / (C + T), the mass of the shorter context. A
level sums to (C + T * 1) / (C + T) = 1 over the vocabulary if the level below does, and no token has probability 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flm.measures.diversity import TokenRows, token_rows
from flm.measures.estimate import Estimate


@dataclass(frozen=True)
class _Level:
    """All k-grams of the training text for one k. A (k-1)-gram is given by its index in the level below.

    Attributes:
        keys: (G,) ascending, index of the first k - 1 tokens * V + last token.
        counts: (G,) c(h w).
        totals: C(h), indexed by (k-1)-gram.
        kinds: T(h), indexed likewise.
    """

    keys: np.ndarray
    counts: np.ndarray
    totals: np.ndarray
    kinds: np.ndarray


class NGramModel:
    """Witten-Bell n-gram model of token sequences. The first tokens of a sequence have shorter contexts.

    Args:
        sequences: training text, one sequence of ids for each document or block; contexts do not cross between them.
        vocab_size: V; every id must be below it.
        order: n >= 1; 3 means two tokens of context.

    Raises:
        ValueError: no training token, or an id outside [0, V).
    """

    def __init__(self, sequences: TokenRows, vocab_size: int, order: int = 3):
        if order < 1:
            raise ValueError(f"the order of an n-gram model must be at least 1, not {order}")
        self.vocab_size, self.order = vocab_size, order
        tokens, first, _ = self._flat(token_rows(sequences))
        if not len(tokens):
            raise ValueError("an n-gram model needs at least one token of training text")
        self._levels: list[_Level] = []
        context, contexts = np.zeros(len(tokens), dtype=np.int64), 1
        for _ in range(order):
            valid = context >= 0
            if not valid.any():
                break  # no training sequence is longer: the model is one of lower order
            keys, index, counts = np.unique(
                context[valid] * vocab_size + tokens[valid], return_inverse=True, return_counts=True
            )
            parents = keys // vocab_size
            totals = np.bincount(parents, weights=counts, minlength=contexts)
            self._levels.append(_Level(keys, counts, totals, np.bincount(parents, minlength=contexts)))
            found = np.full(len(tokens), -1, dtype=np.int64)
            found[valid] = index
            context, contexts = _shifted(found, first), len(keys)

    def log_prob(self, row: Sequence[int]) -> np.ndarray:
        """Log-probability (L,) in nats of each token of one sequence, given the order - 1 tokens before it."""
        tokens, first, _ = self._flat([list(row)])
        return self._log_prob(tokens, first)

    def probabilities(self, context: Sequence[int]) -> np.ndarray:
        """Distribution (V,) of the token after the last order - 1 tokens of `context`."""
        context = list(context)[max(0, len(context) - self.order + 1) :]
        tokens, first, _ = self._flat([[*context, token] for token in range(self.vocab_size)])
        return np.exp(self._log_prob(tokens, first)[len(context) :: len(context) + 1])

    def cross_entropy(self, sequences: TokenRows) -> Estimate:
        """Nats per token, pooled over all tokens of all sequences; the error is over sequences.

        Raises:
            ValueError: no token at all, or an id outside [0, V).
        """
        tokens, first, lengths = self._flat(token_rows(sequences))
        owner = np.repeat(np.arange(len(lengths)), lengths)
        sums = np.bincount(owner, weights=-self._log_prob(tokens, first), minlength=len(lengths))
        return Estimate.ratio(sums, lengths)

    def _log_prob(self, tokens: np.ndarray, first: np.ndarray) -> np.ndarray:
        p = np.full(len(tokens), 1 / self.vocab_size)
        context = np.zeros(len(tokens), dtype=np.int64)  # index of what stands before a token; -1: never seen, or none
        for level in self._levels:
            known = context >= 0
            total = np.where(known, level.totals[context], 0)
            kinds = np.where(known, level.kinds[context], 0)
            key = context * self.vocab_size + tokens
            place = np.minimum(np.searchsorted(level.keys, key), len(level.keys) - 1)
            seen = level.keys[place] == key  # a key made of -1 is negative and equals none
            count = np.where(seen, level.counts[place], 0)
            mass = total + kinds
            p = np.where(mass > 0, (count + kinds * p) / np.maximum(mass, 1), p)
            context = _shifted(np.where(seen, place, -1), first)
        return np.log(p)

    def _flat(self, rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All tokens in one array, whether each begins a sequence, and the sequences' lengths."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        tokens = np.array([token for row in rows for token in row], dtype=np.int64)
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < self.vocab_size:
            span = f"{tokens.min()} to {tokens.max()}"
            raise ValueError(f"token ids from {span} do not fit a vocabulary of {self.vocab_size}")
        first = np.zeros(len(tokens), dtype=bool)
        first[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
        return tokens, first, lengths


def _shifted(index: np.ndarray, first: np.ndarray) -> np.ndarray:
    """For each token, the index of the n-gram that ends just before it; -1 at the beginning of a sequence."""
    before = np.concatenate([[-1], index[:-1]])
    return np.where(first, -1, before)
