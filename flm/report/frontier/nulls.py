"""Texts that no model wrote, as baselines of a frontier (arXiv 2606.08417).

They are made from token or phrase frequencies, or from real text. Some reach a lower perplexity than any model, at entropies
near that of real text. They give themselves away by repetition, which is therefore reported beside every number.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flm.tasks.held_out import RealText

PHRASE = 5  # tokens of a phrase
SIZES = 4  # the most sizes of each kind

Rows = list[list[int]]


@dataclass(frozen=True)
class Null:
    """Texts of one kind.

    Attributes:
        size: how many different tokens or phrases they are drawn from, or the length of the passage that is repeated.
    """

    name: str
    size: int
    rows: Rows


def nulls(real: RealText, count: int, length: int, seed: int) -> Iterator[Null]:
    """`count` texts of each kind and size.

    Frequencies are those of held-out blocks with which samples are not compared, if there are enough of them.
    """
    chosen = set(real.chosen)
    others = [block for index, block in enumerate(real.blocks) if index not in chosen]
    source = others if len(others) >= len(chosen) else real.blocks
    frequent = Counter(token for block in source for token in block).most_common()
    phrases = [list(gram) for gram, _ in _phrases(source).most_common()]
    texts = [real.rows[index % len(real.rows)] for index in range(count)]
    yield Null("shuffled text", length, shuffled(texts, _draws(seed, 0)))
    kinds: list[tuple[str, Sequence[int], Callable[[int, np.random.Generator], Rows]]] = [
        ("unigram draws", sizes(4, len(frequent)), lambda k, draws: unigram(frequent[:k], count, length, draws)),
        ("mirrored draws", sizes(4, len(frequent)), lambda k, draws: mirrored(frequent[:k], count, length, draws)),
        ("periodic tokens", sizes(4, min(len(frequent), length)), lambda k, _: periodic(frequent[:k], count, length)),
        ("frequent phrases", sizes(4, len(phrases)), lambda k, draws: strung(phrases[:k], count, length, draws)),
        ("repeated passage", sizes(4, length // 2), lambda k, _: [(text[:k] * -(-length // k))[:length] for text in texts]),
    ]
    for number, (name, chosen_sizes, write) in enumerate(kinds, 1):
        for size in chosen_sizes:
            yield Null(name, size, write(size, _draws(seed, number)))


def sizes(least: int, most: int) -> list[int]:
    """At most SIZES numbers from `least` to `most` with equal ratios; none if `most` is below 1."""
    if most < 1:
        return []
    least = min(least, most)
    return sorted({round(least * (most / least) ** (index / (SIZES - 1))) for index in range(SIZES)})


def shuffled(texts: Sequence[Sequence[int]], draws: np.random.Generator) -> Rows:
    """The tokens of each text in random order, which keeps its unigram entropy."""
    return [draws.permutation(text).tolist() for text in texts]


def unigram(frequent: Sequence[tuple[int, int]], count: int, length: int, draws: np.random.Generator) -> Rows:
    """Tokens drawn independently, by frequency, from the most frequent ones."""
    tokens, weights = np.array(frequent).T
    return draws.choice(tokens, size=(count, length), p=weights / weights.sum()).tolist()


def mirrored(frequent: Sequence[tuple[int, int]], count: int, length: int, draws: np.random.Generator) -> Rows:
    """Half a text as by `unigram`, then the same half again."""
    half = unigram(frequent, count, -(-length // 2), draws)
    return [(row * 2)[:length] for row in half]


def periodic(frequent: Sequence[tuple[int, int]], count: int, length: int) -> Rows:
    """The k most frequent tokens in turn, again and again. Its entropy is log k, and all texts are the same."""
    tokens = [token for token, _ in frequent]
    return [(tokens * -(-length // len(tokens)))[:length] for _ in range(count)]


def strung(phrases: Sequence[Sequence[int]], count: int, length: int, draws: np.random.Generator) -> Rows:
    """The most frequent phrases, drawn uniformly and concatenated."""
    picks = draws.integers(len(phrases), size=(count, -(-length // PHRASE)))
    return [[token for pick in row for token in phrases[pick]][:length] for row in picks]


def _phrases(blocks: Sequence[Sequence[int]]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(block[i : i + PHRASE]) for block in blocks for i in range(len(block) - PHRASE + 1))


def _draws(seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng((seed, number))
