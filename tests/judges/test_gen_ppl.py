import math

import pytest
import torch

from flm.data.tokenizers import ByteTokenizer
from flm.judges.gen_ppl import PublishedProtocol, TokenScorer, WholeTextProtocol

EOS = 9


def scored_targets(protocol, ids, context):
    """(tokens before it in its window, token) of every scored target."""
    return [
        (window.ids[:i], window.ids[i])
        for window in protocol.windows(ids, context, EOS)
        for i, scored in enumerate(window.scored)
        if scored
    ]


@pytest.mark.parametrize(
    ("ids", "targets"),
    [
        ([], []),
        ([EOS], []),  # the first end token is the first token
        ([1], [EOS]),  # the first of the padding
        ([1, 2, 3], [2, 3, EOS]),
        ([1, 2, 3, 4, 5], [2, 3, 4, 5]),  # fills max_tokens: no padding
        ([1, 2, 3, 4, 5, 6, EOS], [2, 3, 4, 5]),  # cut off
        ([1, EOS, 2, EOS, 3], [EOS, 2, 3]),  # goes on after the first end
        ([EOS, 1, EOS, 2], [1, 2]),  # the first end token cannot be scored, and no later one is
        ([1, 2, EOS], [2, EOS]),
    ],
)
def test_what_the_published_protocol_scores(ids, targets):
    assert [token for _, token in scored_targets(PublishedProtocol(5), ids, context=8)] == targets


def test_a_later_end_token_stays_in_context():
    assert scored_targets(PublishedProtocol(6), [1, EOS, 2, EOS, 3], 8)[-1] == ([1, EOS, 2, EOS], 3)


def test_published_protocol_in_pieces_of_the_context():
    # pieces 1 2 3 4 | 5 6 7 + padding; each begins with a token that is context only and has its own first end token
    targets = scored_targets(PublishedProtocol(10), [1, 2, EOS, 4, 5, EOS, 7], context=4)
    assert targets == [([1], 2), ([1, 2], EOS), ([1, 2, EOS], 4), ([5], EOS), ([5, EOS], 7)]
    # real tokens end with a piece: the padding that follows is a piece of its own, without a scored token
    assert [token for _, token in scored_targets(PublishedProtocol(10), [1, 2, 3, 4], context=4)] == [2, 3, 4]


@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 12, 13, 40])
@pytest.mark.parametrize("stride", [None, 1, 3, 7])
def test_whole_text_scores_each_token_but_the_first_once(length, stride):
    ids = list(range(100, 100 + length))
    targets = scored_targets(WholeTextProtocol(stride), ids, context=8)
    assert [token for _, token in targets] == ids[1:]
    enough = 8 - (stride or 4)
    for before, token in targets:
        position = token - 100
        assert before == ids[position - len(before) : position]
        assert len(before) >= min(position, enough)


def test_windows_overlap_by_half_unless_told():
    ids = list(range(100, 120))
    assert [window.ids[0] for window in WholeTextProtocol().windows(ids, 8, EOS)] == [100, 104, 108, 112]
    assert WholeTextProtocol().describe(8) == "whole text: windows of 8 tokens, 4 apart"
    assert WholeTextProtocol(7).describe(8) == "whole text: windows of 8 tokens, 7 apart"


def test_protocols_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match="max_tokens"):
        PublishedProtocol(1)
    for stride in (0, 8):
        with pytest.raises(ValueError, match="stride"):
            list(WholeTextProtocol(stride).windows([1, 2], 8, EOS))


def bigram_judge(batch_size=3, first=math.nan, **options):
    """-log p of a byte given the one before it, from a random table; column 0 holds `first`."""
    table = torch.randn(257, 257, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)

    def nll(ids):
        out = torch.full(ids.shape, first, dtype=torch.float64)
        out[:, 1:] = -table[ids[:, :-1], ids[:, 1:]]
        return out

    tokenizer = ByteTokenizer().build(lambda: iter(()))
    return TokenScorer(nll, tokenizer, "bigram", context=16, batch_size=batch_size, **options), table


def test_token_scorer_by_hand():
    scorer, table = bigram_judge()
    result = scorer.score(["abc", "", "d<|end|>e", "f"], PublishedProtocol(16))
    a, b, c, d, e, f, end = *b"abcdef", 256
    pairs = [[(a, b), (b, c), (c, end)], [], [(d, end), (end, e)], [(f, end)]]
    sums = [sum(-table[pair].item() for pair in row) for row in pairs]
    assert result.nll_per_sample == pytest.approx(sums, rel=1e-12)
    assert result.tokens_per_sample == [3, 0, 2, 1]
    assert (result.num_samples, result.num_without_scored_tokens, result.num_scored_tokens) == (4, 1, 6)
    assert result.nats_per_token == pytest.approx(sum(sums) / 6)
    assert result.ppl == pytest.approx(math.exp(sum(sums) / 6))
    residuals = [(s - result.nats_per_token * n) ** 2 for s, n in zip(sums, [3, 0, 2, 1], strict=True)]
    assert result.standard_error == pytest.approx(math.sqrt(3 / 2 * sum(residuals)) / 6)


def test_ids_are_scored_as_their_text_is():
    scorer, _ = bigram_judge(first=0.0)
    texts = ["hello there", "a", "some longer text than the context of this judge"]
    for protocol in (PublishedProtocol(12), WholeTextProtocol()):
        assert scorer.score_tokens([list(t.encode()) for t in texts], protocol) == scorer.score(texts, protocol)


def test_whole_text_of_a_bigram_judge_does_not_depend_on_windows():
    scorer, table = bigram_judge()
    text = "the quick brown fox jumps over the lazy dog again and again"
    expected = sum(-table[pair].item() for pair in zip(text.encode(), text.encode()[1:], strict=False))
    for stride in (1, 5, 15):
        result = scorer.score([text], WholeTextProtocol(stride))
        assert result.nll_per_sample == pytest.approx([expected], rel=1e-12)
        assert result.standard_error is None


def test_nothing_scored_is_no_number():
    result = bigram_judge()[0].score(["", ""], WholeTextProtocol())
    assert (result.ppl, result.nats_per_token, result.standard_error) == (None, None, None)
    assert (result.num_samples, result.num_without_scored_tokens) == (2, 2)
    assert bigram_judge()[0].score([], WholeTextProtocol()).num_samples == 0


def test_a_judge_that_breaks_is_an_error():
    tokenizer = ByteTokenizer().build(lambda: iter(()))
    broken = TokenScorer(lambda ids: torch.full(ids.shape, math.nan), tokenizer, "broken", context=8, dtype="float16")
    with pytest.raises(ValueError, match="broken gave values that are not finite in float16"):
        broken.score(["ab"], WholeTextProtocol())
    logits = TokenScorer(lambda ids: torch.zeros(*ids.shape, 257), tokenizer, "logits", context=8)
    with pytest.raises(ValueError, match="logits gave"):
        logits.score(["ab"], WholeTextProtocol())
    with pytest.raises(ValueError, match="batch_size"):
        bigram_judge(batch_size=0)
