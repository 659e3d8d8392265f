import itertools
import random

import pytest
from sacrebleu.metrics.bleu import BLEU

from flm.conditional.responses import (
    bert_scores,
    consensus_of,
    corpus_bleu,
    exact_match,
    longest_common_subsequence,
    response_scores,
    rouge_l,
    sentence_bleu,
)


def test_rouge_l_by_hand():
    # common: police, the, gunman -> 3 of 4 and 3 of 4 words (Lin, 2004, section 3)
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(0.75)
    # common: the, gunman -> 2 of 4
    assert rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(0.5)
    # 4 common of 5 and 7: 2 * 4 / 12
    assert rouge_l("The cat; SAT down here", "the big cat sat happily down, now") == pytest.approx(2 * 4 / 12)
    assert rouge_l("a b c", "a b c d e f") == pytest.approx(2 * 3 / 9)
    assert rouge_l("", "a") == rouge_l("a", "") == rouge_l("...", "a") == rouge_l("", "") == 0
    assert rouge_l("Fr\u00fche Z\u00fcge", "fr\u00fche z\u00fcge!") == 1


def test_common_subsequence_against_all_subsequences():
    rng = random.Random(0)
    for _ in range(300):
        first, second = ("".join(rng.choice("abc") for _ in range(rng.randint(0, 7))) for _ in range(2))
        subsequences = [{c for n in range(8) for c in itertools.combinations(text, n)} for text in (first, second)]
        assert longest_common_subsequence(first, second) == max(map(len, subsequences[0] & subsequences[1]))
    long = [str(rng.randint(0, 5)) for _ in range(300)]
    assert longest_common_subsequence(long, long) == 300 and longest_common_subsequence(long, long[::2]) == 150


def test_bleu_by_hand():
    reference = "the cat sat on the mat today"
    assert sentence_bleu(reference, reference) == pytest.approx(1)
    # precisions 5/6, 4/5, 3/4, 2/3 of "the cat sat on the dog"; brevity exp(1 - 7/6)
    value = (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25 * 2.718281828 ** (1 - 7 / 6)
    assert sentence_bleu("the cat sat on the dog", reference) == pytest.approx(value, rel=1e-6)
    assert sentence_bleu("the cat slept", reference) == 0  # no four words in a row: unsmoothed
    score, signature = corpus_bleu(["the cat sat on the dog", reference], [reference, reference])
    precisions = (12 / 13, 10 / 11, 8 / 9, 6 / 7)
    expected = 1
    for precision in precisions:
        expected *= precision**0.25
    assert score == pytest.approx(100 * expected * 2.718281828 ** (1 - 14 / 13), rel=1e-6) and "tok:13a" in signature


def test_exact_match():
    assert exact_match(" a b\n", "a b") == 1 and exact_match("a  b", "a b") == 0 and exact_match("A", "a") == 0


def test_mean_and_best_of_several():
    found = response_scores([["a b", "x"], ["c", "c"], ["y", "z"]], ["a b", "c", "d"])
    assert found["exact_match"]["mean"]["mean"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert found["exact_match"]["best"]["mean"] == pytest.approx(2 / 3)
    assert found["rouge_l"]["best"]["mean"] == pytest.approx(2 / 3) and found["samples"] == 2 and found["prompts"] == 3
    assert "bert_score" not in found
    with pytest.raises(ValueError, match="no responses"):
        response_scores([], [])


def test_bert_score_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bert_score", None)
    with pytest.raises(ValueError, match="pip install bert-score"):
        bert_scores([["a"]], ["a"], "some/model")


def test_the_consensus_is_the_response_nearest_to_the_others():
    given = ["a b c d e", "a b c d f", "x y z w v", "a b c d e g"]
    gains = [
        sum(BLEU(effective_order=True).sentence_score(one, [other]).score for other in given if other != one) for one in given
    ]
    assert consensus_of(given) == gains.index(max(gains)) != 2
    assert consensus_of(["same", "same"]) == 0 and consensus_of(["alone"]) == 0
    found = response_scores([given], ["x y z w v"])
    assert found["exact_match"]["best"]["mean"] == 1 and found["exact_match"]["consensus"]["mean"] == 0
