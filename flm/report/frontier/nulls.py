"""Texts that no model wrote: what every claim on a frontier has to beat (arXiv 2606.08417). L tokens a text.

They know how frequent tokens are, or real text itself, and nothing else. Some reach perplexities that no model reaches, at
entropies near that of text: repetition tells them apart, which is why it stands beside every number.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flm.tasks.held_out import RealText

PHRASE = 5  # tokens of the phrases that are strung together
SIZES = 4  # how many values of a size are tried

Rows = list[list[int]]


@dataclass(frozen=True)
class Null:
    """A set of texts: how they came about, and the size (of what is drawn from, or of what is repeated) that was chosen."""

    name: str
    size: int
    rows: Rows


def nulls(real: RealText, count: int, length: int, seed: int) -> Iterator[Null]:
    """`count` texts of each kind and size.

    Tables are of the held-out blocks that samples are not held against, where there are enough of them.
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
    """A few from `least` to `most`, by equal factors; none where there is nothing."""
    if most < 1:
        return []
    least = min(least, most)
    return sorted({round(least * (most / least) ** (index / (SIZES - 1))) for index in range(SIZES)})


def shuffled(texts: Sequence[Sequence[int]], draws: np.random.Generator) -> Rows:
    """Real texts in random order: their entropy, and nothing of what makes them text."""
    return [draws.permutation(text).tolist() for text in texts]


def unigram(frequent: Sequence[tuple[int, int]], count: int, length: int, draws: np.random.Generator) -> Rows:
    """Tokens drawn one by one from the most frequent ones."""
    tokens, weights = np.array(frequent).T
    return draws.choice(tokens, size=(count, length), p=weights / weights.sum()).tolist()


def mirrored(frequent: Sequence[tuple[int, int]], count: int, length: int, draws: np.random.Generator) -> Rows:
    """Half a text so drawn, and then the same again."""
    half = unigram(frequent, count, -(-length // 2), draws)
    return [(row * 2)[:length] for row in half]


def periodic(frequent: Sequence[tuple[int, int]], count: int, length: int) -> Rows:
    """The most frequent tokens in turn, over and over: entropy log k at once, every text the same."""
    tokens = [token for token, _ in frequent]
    return [(tokens * -(-length // len(tokens)))[:length] for _ in range(count)]


def strung(phrases: Sequence[Sequence[int]], count: int, length: int, draws: np.random.Generator) -> Rows:
    """The most frequent phrases, drawn alike often and put one after the other."""
    picks = draws.integers(len(phrases), size=(count, -(-length // PHRASE)))
    return [[token for pick in row for token in phrases[pick]][:length] for row in picks]


def _phrases(blocks: Sequence[Sequence[int]]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(block[i : i + PHRASE]) for block in blocks for i in range(len(block) - PHRASE + 1))


def _draws(seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng((seed, number))
