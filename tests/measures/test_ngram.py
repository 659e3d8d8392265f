import math
import time
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from flm.measures.ngram import NGramModel


def witten_bell(sequences, vocab_size, order):
    """The textbook recursion on dictionaries."""
    counts = defaultdict(Counter)
    for row in sequences:
        for i, token in enumerate(row):
            for n in range(min(i, order - 1) + 1):
                counts[tuple(row[i - n : i])][token] += 1

    def p(token, context):
        lower = p(token, context[1:]) if context else 1 / vocab_size
        followers = counts.get(context)
        if not followers:
            return lower
        return (followers[token] + len(followers) * lower) / (sum(followers.values()) + len(followers))

    return lambda row, i: p(row[i], tuple(row[max(0, i - order + 1) : i]))


def text(rows, length, vocab_size, seed):
    """A sparse Markov chain, so that contexts repeat and some never occur."""
    random = np.random.default_rng(seed)
    steps = random.integers(0, vocab_size, size=(vocab_size, 3))
    out = random.integers(0, vocab_size, size=(rows, length))
    for i in range(1, length):
        out[:, i] = steps[out[:, i - 1], random.integers(0, 3, size=rows)]
    return out.tolist()


def test_by_hand():
    # "0 1 0 2" with V = 4, bigram: p1(0) = (2 + 3/4) / 7, p1(2) = (1 + 3/4) / 7; after 0 came {1, 2}
    model = NGramModel([[0, 1, 0, 2]], vocab_size=4, order=2)
    p1 = [2.75 / 7, 1.75 / 7, 1.75 / 7, 0.75 / 7]
    assert model.probabilities([]) == pytest.approx(p1)
    assert model.probabilities([0]) == pytest.approx([(c + 2 * p) / 4 for c, p in zip([0, 1, 1, 0], p1, strict=True)])
    assert model.probabilities([3]) == pytest.approx(p1)  # never seen
    assert model.probabilities([2]) == pytest.approx(p1)  # seen, never followed
    assert model.log_prob([0, 3]).tolist() == pytest.approx([math.log(p1[0]), math.log(2 * p1[3] / 4)])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equals_the_textbook_recursion(order):
    train, test = text(20, 30, 12, seed=1), [*text(6, 25, 12, seed=2), [3], [], [11, 11, 11, 11]]
    train += [[5], [], [7, 7]]
    model, reference = NGramModel(train, 12, order), witten_bell(train, 12, order)
    nll = [[-math.log(reference(row, i)) for i in range(len(row))] for row in test]
    for row, expected in zip(test, nll, strict=True):
        assert (-model.log_prob(row)).tolist() == pytest.approx(expected, rel=1e-12)
    found = model.cross_entropy(test)
    pooled = sum(map(sum, nll)) / sum(map(len, nll))
    assert found.mean == pytest.approx(pooled, rel=1e-12)
    assert found.count == 8  # the empty one says nothing
    residuals = [(sum(row) - pooled * len(row)) ** 2 for row in nll]
    assert found.standard_error == pytest.approx(math.sqrt(8 / 7 * sum(residuals)) / sum(map(len, nll)), rel=1e-9)


@pytest.mark.parametrize("context", [[], [0], [0, 1], [3, 9], [19, 19], [2, 0, 1], [4, 19, 0]])
def test_is_a_distribution_over_all_tokens_seen_or_not(context):
    train = [row for row in text(30, 20, 20, seed=5) if 19 not in row]
    p = NGramModel(train, 20, 3).probabilities(context)
    assert p.shape == (20,) and (p > 0).all()
    assert p.sum() == pytest.approx(1, abs=1e-12)


def test_knows_its_own_text_better_and_longer_contexts_help():
    train, test = text(200, 50, 30, seed=7), text(20, 50, 30, seed=7)
    uniform = np.random.default_rng(0).integers(0, 30, size=(20, 50))
    bigram = NGramModel(torch.tensor(train), 30, 2)
    # of the chain: log 3 at most (three followers, drawn evenly), plus what the first token and the smoothing cost
    assert bigram.cross_entropy(torch.tensor(test)).mean < math.log(3) + 0.15
    assert NGramModel(train, 30, 1).cross_entropy(test).mean > 2
    assert bigram.cross_entropy(uniform).mean > math.log(30)


def test_training_text_shorter_than_the_order():
    model = NGramModel([[0, 1], [1]], 3, order=5)
    assert model.probabilities([2, 0, 1, 0]).sum() == pytest.approx(1)
    assert model.log_prob([0, 1, 2]).tolist() == NGramModel([[0, 1], [1]], 3, order=2).log_prob([0, 1, 2]).tolist()


def test_refuses_what_it_cannot_count():
    with pytest.raises(ValueError, match="0 to 9 do not fit a vocabulary of 9"):
        NGramModel([[0, 9]], 9)
    with pytest.raises(ValueError, match="do not fit"):
        NGramModel([[0, 8]], 9).cross_entropy([[-1]])
    with pytest.raises(ValueError, match="at least one token"):
        NGramModel([[]], 9)
    with pytest.raises(ValueError, match="order"):
        NGramModel([[1]], 9, order=0)
    with pytest.raises(ValueError, match="empty"):
        NGramModel([[1]], 9).cross_entropy([])


def test_a_million_tokens_and_a_wide_vocabulary():
    random = np.random.default_rng(0)
    tokens = (random.zipf(1.3, size=(1000, 1000)) % 50_000).astype(np.int64)
    start = time.process_time()
    model = NGramModel(tokens, 50_000, 3)
    fitted = time.process_time()
    judged = model.cross_entropy(tokens[:64, :128])
    done = time.process_time()
    # scoring 8,192 tokens is a matter of look-ups, not of another pass over the text
    assert done - fitted < (fitted - start) / 5
    assert judged.mean < model.cross_entropy(random.integers(0, 50_000, size=(64, 128))).mean
