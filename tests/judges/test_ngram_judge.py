import pytest

from flm.judges.ngram_judge import HeldOutNGrams
from flm.measures.estimate import Estimate
from flm.measures.ngram import NGramModel

BLOCKS = [[0, 1, 2, 3], [1, 2, 3, 0], [3, 3, 0, 1], [4, 5, 4, 5], [5, 4, 4, 5]]
HALVES = BLOCKS[:2], BLOCKS[2:]


def test_real_blocks_are_scored_by_the_half_they_are_not_in():
    judge = HeldOutNGrams(BLOCKS, vocab_size=6)
    first, second = (NGramModel(half, 6) for half in HALVES)
    for index in range(5):
        other = second if index < 2 else first
        assert judge.real([index]).mean == pytest.approx(other.cross_entropy([BLOCKS[index]]).mean)
    pooled = second.cross_entropy([BLOCKS[1]]).mean + first.cross_entropy([BLOCKS[3]]).mean
    assert judge.real([1, 3]).mean == pytest.approx(pooled / 2)


def test_generated_text_is_scored_by_both_halves():
    judge = HeldOutNGrams(BLOCKS, vocab_size=6)
    samples = [[0, 1, 2, 3, 3], [4, 5]]
    sums = [sum(NGramModel(half, 6).cross_entropy([row]).mean for half in HALVES) / 2 * len(row) for row in samples]
    expected = Estimate.ratio(sums, [5, 2])
    found = judge.generated(samples)
    assert (found.mean, found.standard_error, found.count) == pytest.approx(
        (expected.mean, expected.standard_error, expected.count)
    )


def test_text_in_both_halves_scores_alike_as_real_and_as_generated():
    """Real and generated text are on one scale: with equal halves the two ways are the same."""
    judge = HeldOutNGrams(BLOCKS[:3] * 2, vocab_size=6)
    assert judge.real([0, 1, 2]).mean == pytest.approx(judge.generated(BLOCKS[:3]).mean)


def test_one_block_is_too_little():
    with pytest.raises(ValueError, match="two blocks"):
        HeldOutNGrams(BLOCKS[:1], vocab_size=6)
