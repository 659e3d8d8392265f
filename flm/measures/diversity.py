"""How varied a set of samples is: within a sample (entropy, repetition), between samples (distinct-n, self-BLEU), and over the
whole set (different tokens, and how far their frequencies are from those of real text).

All depend on the length and number of samples. So compare them with the same measures of as many real texts of the same length.
Entropy within samples cannot show a model that writes only the few hundred most frequent tokens, but varies them as real text
does; `TokenFrequencies` shows it. N samples.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from torch import Tensor

from flm.measures.estimate import Estimate

TokenRows = Tensor | Sequence[Sequence[int]]


@dataclass(frozen=True)
class TokenDiversity:
    """The measures on token ids.

    Attributes:
        num_samples: N.
        entropy_nats: unigram entropy within one sample, averaged over samples.
        entropy_per_sample: the N values it averages.
        distinct_tokens: different ids in one sample.
        tokens_used: different ids in the whole set.
        distinct_1, distinct_2, distinct_3: see `distinct_n`.
        rep_4: share of a sample's 4-grams that occurred before in it, in [0, 1].
        longest_run: tokens in a sample's longest run of one id.
        longest_run_of_all: the longest run in any sample.
    """

    num_samples: int
    entropy_nats: Estimate
    entropy_per_sample: list[float]
    distinct_tokens: Estimate
    tokens_used: int
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    rep_4: Estimate
    longest_run: Estimate
    longest_run_of_all: int


def token_diversity(tokens: TokenRows) -> TokenDiversity:
    """All measures on token ids of N samples. Raises ValueError if there is no sample."""
    rows = token_rows(tokens)
    if not rows:
        raise ValueError("no samples to measure")
    entropies = [unigram_entropy(row) for row in rows]
    runs = [longest_run(row) for row in rows]
    used: set[int] = set()
    for row in rows:
        used.update(row)
    return TokenDiversity(
        num_samples=len(rows),
        entropy_nats=Estimate.of(entropies),
        entropy_per_sample=entropies,
        distinct_tokens=Estimate.of([len(set(row)) for row in rows]),
        tokens_used=len(used),
        distinct_1=distinct_n(rows, 1),
        distinct_2=distinct_n(rows, 2),
        distinct_3=distinct_n(rows, 3),
        rep_4=Estimate.of([repetition(row, 4) for row in rows]),
        longest_run=Estimate.of(runs),
        longest_run_of_all=max(runs),
    )


class TokenFrequencies:
    """How often each token occurs in a text, to compare samples with.

    Args:
        rows: the text, at least one token.
        without: rows of that text to leave out, so that they can be compared with the rest.

    Raises:
        ValueError: no token is left.
    """

    def __init__(self, rows: TokenRows, without: TokenRows = ()):
        self._counts = _counted(rows)
        self._counts.subtract(_counted(without))
        self._total = sum(self._counts.values())
        if self._total <= 0:
            raise ValueError("token frequencies need at least one token of text")

    def js_bits(self, rows: TokenRows) -> float | None:
        """Jensen-Shannon divergence of the samples' token frequencies from the text's, in [0, 1] bits; None without tokens.

        0: the same frequencies; 1: no token in common. Samples of the text itself are above 0, the more so the fewer they are:
        0.05 for 8,192 tokens of a text with 2,048 different ones. So compare with as many real samples.
        """
        counts = _counted(rows)
        total = sum(counts.values())
        if not total:
            return None
        ids = list(self._counts.keys() | counts.keys())
        p = np.array([counts[token] for token in ids], dtype=np.float64) / total
        q = np.array([self._counts[token] for token in ids], dtype=np.float64) / self._total
        middle = (p + q) / 2
        return max(0.0, _entropy_bits(middle) - (_entropy_bits(p) + _entropy_bits(q)) / 2)


def _counted(rows: TokenRows) -> Counter[int]:
    return Counter(chain.from_iterable(token_rows(rows)))


def _entropy_bits(p: np.ndarray) -> float:
    present = p[p > 0]
    return float(-(present * np.log2(present)).sum())


def token_rows(tokens: TokenRows) -> list[list[int]]:
    """Ids as lists, from an (N, L) tensor or array, or from N sequences of any lengths."""
    if isinstance(tokens, Tensor | np.ndarray):
        return tokens.tolist()
    return [row.tolist() if isinstance(row, Tensor | np.ndarray) else list(row) for row in tokens]


def unigram_entropy(row: Sequence[int]) -> float:
    """Entropy in nats of the token frequencies in one sample, in [0, log L]; 0 for an empty one."""
    counts = np.array(list(Counter(row).values()), dtype=np.float64)
    frequencies = counts / counts.sum() if len(counts) else counts
    return float(-(frequencies * np.log(frequencies)).sum()) + 0.0


def distinct_n(rows: Sequence[Sequence[int]], n: int) -> float | None:
    """Different n-grams of the whole set divided by all its n-grams (Li et al., arXiv 1510.03055); None without any n-gram.

    An n-gram lies within one sample. The ratio falls with the size of the set: compare equal sizes only.
    """
    seen: set[tuple[int, ...]] = set()
    total = 0
    for row in rows:
        seen.update(_ngrams(row, n))
        total += max(0, len(row) - n + 1)
    return len(seen) / total if total else None


def repetition(row: Sequence[int], n: int) -> float:
    """Share of a sample's n-grams that occurred before in it, in [0, 1); 0 where it has none (rep-n)."""
    total = max(0, len(row) - n + 1)
    return 1 - len(set(_ngrams(row, n))) / total if total else 0.0


def longest_run(row: Sequence[int]) -> int:
    """Tokens in the longest run of one id; 0 for an empty sample."""
    longest = current = 0
    previous = None
    for token in row:
        current = current + 1 if token == previous else 1
        longest, previous = max(longest, current), token
    return longest


def self_bleu_4(texts: Sequence[str], max_samples: int = 256, seed: int = 0, tokenize: str = "13a") -> Estimate | None:
    """Self-BLEU-4 in [0, 100]: the mean over texts of BLEU-4 with all other texts as references (arXiv 1802.01886).

    High means that samples resemble one another. It grows with the number of references, so compare equal numbers only
    (`count`). The score of a text is sacrebleu's sentence BLEU (exponential smoothing, effective order). The standard error
    treats the scores as independent, though the texts share references.

    To be linear in the number of texts, reference counts are merged once. The second highest count of each n-gram is kept
    too, for the text that has the highest itself.

    Args:
        max_samples: of more texts a random subset of this size is taken, the same for the same seed and number of texts.
        tokenize: sacrebleu's tokenizer: words and punctuation ("13a"), single characters ("char"), ...

    Returns:
        None with fewer than two texts. An empty text scores 0.
    """
    from sacrebleu.metrics.bleu import BLEU

    if max_samples < 2:
        raise ValueError(f"self-BLEU needs at least two samples: max_samples={max_samples}")
    if len(texts) < 2:
        return None
    if len(texts) > max_samples:
        texts = random.Random(seed).sample(list(texts), max_samples)
    split = BLEU(tokenize=tokenize).tokenizer
    sentences = [split(text.rstrip()).split() for text in texts]
    counts = [Counter(gram for n in range(1, 5) for gram in _ngrams(words, n)) for words in sentences]

    # n-gram: its highest count in a text, which text that is, the highest count in any other text
    most: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for owner, own in enumerate(counts):
        for gram, count in own.items():
            first, whose, second = most.get(gram, (0, -1, 0))
            most[gram] = (count, owner, first) if count > first else (first, whose, max(second, count))

    scores = []
    for owner, own in enumerate(counts):
        correct, total = [0] * 4, [0] * 4
        for gram, count in own.items():
            first, whose, second = most[gram]
            correct[len(gram) - 1] += min(count, second if whose == owner else first)
            total[len(gram) - 1] += count
        length = len(sentences[owner])
        others = (len(words) for i, words in enumerate(sentences) if i != owner)
        closest = min(others, key=lambda other: (abs(other - length), other))
        scores.append(BLEU.compute_bleu(correct, total, length, closest, "exp", effective_order=True).score)
    return Estimate.of(scores)


def _ngrams(row: Sequence, n: int):
    return zip(*(row[i:] for i in range(n)), strict=False)
