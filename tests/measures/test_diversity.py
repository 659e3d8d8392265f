import math
import random

import pytest
import torch
from sacrebleu.metrics.bleu import BLEU

from flm.measures.diversity import (
    TokenFrequencies,
    distinct_n,
    longest_run,
    repetition,
    self_bleu_4,
    token_diversity,
    unigram_entropy,
)

WORDS = "the a cat dog sat ran on under mat hill , . and then".split()


def sentences(count, seed=0, longest=18):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count)]


def test_entropy_by_hand():
    assert unigram_entropy([7, 7, 7, 7]) == 0.0
    assert unigram_entropy([1, 2, 3, 4, 4, 3, 2, 1]) == pytest.approx(math.log(4), rel=1e-12)
    # frequencies 1/2, 1/4, 1/4: 1.5 bits
    assert unigram_entropy([5, 5, 6, 9]) == pytest.approx(1.5 * math.log(2), rel=1e-12)
    assert unigram_entropy([]) == 0.0


def test_distinct_by_hand():
    rows = [[1, 2, 1, 2, 1], [1, 2, 3], [4]]
    # unigrams: {1, 2, 3, 4} of 9; bigrams 12 21 12 21 | 12 23: {12, 21, 23} of 6, none across samples;
    # trigrams 121 212 121 | 123: {121, 212, 123} of 4
    assert [distinct_n(rows, n) for n in (1, 2, 3)] == [4 / 9, 3 / 6, 3 / 4]
    assert distinct_n([[1], [2]], 2) is None


def test_repetition_by_hand():
    # 4-grams of abcabcabc: abca bcab cabc abca bcab cabc: the last three occurred before
    assert repetition([1, 2, 3, 1, 2, 3, 1, 2, 3], 4) == 0.5
    assert repetition([1, 1, 1, 1, 1, 1], 4) == pytest.approx(2 / 3)
    assert repetition([1, 2, 3, 4, 5], 4) == 0.0
    assert repetition([1, 1, 1], 4) == 0.0


def test_longest_run_by_hand():
    assert longest_run([3, 3, 1, 1, 1, 2, 1]) == 3
    assert longest_run([4, 4]) == 2
    assert longest_run([1, 2, 1]) == 1
    assert longest_run([]) == 0


def test_all_token_measures_together():
    rows = [[5, 5, 6, 9], [1, 2, 3, 4], [7, 7, 7, 7]]
    found = token_diversity(torch.tensor(rows))
    entropies = [1.5 * math.log(2), math.log(4), 0.0]
    assert found.entropy_per_sample == pytest.approx(entropies)
    assert found.entropy_nats.mean == pytest.approx(3.5 * math.log(2) / 3)
    mean = sum(entropies) / 3
    error = math.sqrt(sum((e - mean) ** 2 for e in entropies) / 2 / 3)
    assert found.entropy_nats.standard_error == pytest.approx(error)
    assert found.distinct_tokens.mean == (3 + 4 + 1) / 3
    assert found.tokens_used == 8 and found.num_samples == 3
    assert (found.distinct_1, found.distinct_2, found.distinct_3) == (8 / 12, 7 / 9, 5 / 6)
    assert (found.longest_run.mean, found.longest_run_of_all) == ((2 + 1 + 4) / 3, 4)
    assert found.rep_4.mean == 0
    assert found == token_diversity(rows)  # lists of any lengths are as good as a tensor
    with pytest.raises(ValueError, match="no samples"):
        token_diversity([])


@pytest.mark.filterwarnings("ignore")
def test_token_frequencies_by_hand():
    text = TokenFrequencies([[0, 1], [0, 1, 2, 3]])  # 1/3, 1/3, 1/6, 1/6
    assert text.js_bits([[2, 3, 1, 0, 1, 0]]) == pytest.approx(0.0, abs=1e-12)
    assert text.js_bits([[7, 8, 9]]) == pytest.approx(1.0)
    # against half 0, half 1: m = 5/12, 5/12, 1/12, 1/12
    expected = 0.5 * math.log2(0.5 / (5 / 12)) + (2 / 6 * math.log2((1 / 3) / (5 / 12)) + 1 / 6 * math.log2(2))
    assert text.js_bits(torch.tensor([[0, 1], [1, 0]])) == pytest.approx(expected)
    assert TokenFrequencies([[0, 1], [2, 3]], without=[[2, 3]]).js_bits([[2]]) == pytest.approx(1.0)
    assert text.js_bits([[]]) is None
    with pytest.raises(ValueError, match="at least one token"):
        TokenFrequencies([[4, 5]], without=[[5, 4]])


def test_frequent_tokens_alone_are_seen_where_entropy_is_blind():
    generator = torch.Generator().manual_seed(0)
    frequencies = 1 / torch.arange(1, 513, dtype=torch.float64)  # Zipf
    text = torch.multinomial(frequencies, 64 * 1024, replacement=True, generator=generator).view(-1, 16)
    samples = text[:256]
    narrow = torch.randint(0, 36, (256, 16), generator=generator)  # 36 tokens of 512, as varied within a sample
    held_against = TokenFrequencies(text, without=samples)
    real, collapsed = (held_against.js_bits(rows) for rows in (samples, narrow))
    entropies = [token_diversity(rows).entropy_nats.mean for rows in (samples, narrow)]
    assert abs(entropies[0] - entropies[1]) < 0.1
    assert real < 0.04 and collapsed > 0.2


def test_self_bleu_is_sacrebleu_of_each_text_against_the_others():
    # repeated words and equal maximal counts in several texts, punctuation, a line break, and lengths from 1 word up
    texts = [*sentences(25), "the cat sat on the mat.\nThe dog (the dog) ran", "the the the the the the", "a a a , a a"]
    bleu = BLEU(tokenize="13a", effective_order=True)
    scores = [bleu.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)]
    found = self_bleu_4(texts)
    mean = sum(scores) / len(scores)
    assert found.mean == pytest.approx(mean, rel=1e-12)
    error = math.sqrt(sum((s - mean) ** 2 for s in scores) / (len(scores) - 1) / len(scores))
    assert found.standard_error == pytest.approx(error, rel=1e-9)
    assert found.count == len(texts)


def test_self_bleu_by_hand():
    # "a b c d e" against "a b c d f": precisions 4/5, 3/4, 2/3, 1/2, same length; the same the other way round
    expected = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert self_bleu_4(["a b c d e", "a b c d f"]).mean == pytest.approx(expected, rel=1e-12)
    assert self_bleu_4(["one two three four"] * 3).mean == pytest.approx(100)
    assert self_bleu_4(["one two", "three four"]).mean == 0
    assert self_bleu_4(["alone"]) is None


def test_self_bleu_of_a_subset_depends_on_the_seed_alone():
    texts = sentences(40, seed=3)
    first = self_bleu_4(texts, max_samples=10, seed=1)
    assert first == self_bleu_4(texts, max_samples=10, seed=1)
    assert first != self_bleu_4(texts, max_samples=10, seed=2)
    assert first.count == 10
    # with all words from one small set, more references leave less that is new
    assert self_bleu_4(texts).mean > first.mean
    with pytest.raises(ValueError, match="max_samples"):
        self_bleu_4(texts, max_samples=1)
