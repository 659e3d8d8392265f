import pytest
import torch

from flm.data.tokenizers import ByteTokenizer
from flm.measures.film import FilmStrip, kept_moments, shown_probability, spelling, spellings
from flm.outputs import Combination, RawOutput
from flm.posterior import TokenPosterior
from flm.samplers.autoregressive import Written
from flm.samplers.canvas import Canvas
from flm.samplers.flow import Moment

V, D = 11, 4


def posterior(batch=2, length=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TokenPosterior(torch.randn(batch, length, D, generator=generator), torch.randn(V, D, generator=generator))


@pytest.mark.parametrize("steps", [1, 2, 11, 12, 13, 64, 1000])
def test_moments_kept(steps):
    kept = sorted(kept_moments(steps, 12))
    assert len(kept) == min(steps, 12)
    assert kept[0] == 0 and kept[-1] == steps - 1
    gaps = [b - a for a, b in zip(kept, kept[1:], strict=False)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_single_moment_is_the_last():
    assert kept_moments(8, 1) == {7}


def test_frames_show_the_most_probable_token_and_its_probability():
    canvas = Canvas.from_pieces([[7], 3, [2]], batch=2)
    film = FilmStrip(count=3)
    predictions = [posterior(seed=seed) for seed in range(5)]
    for index, prediction in enumerate(predictions):
        film(Moment(index, 5, index / 5, prediction, canvas))
    assert [frame.index for frame in film.frames] == [0, 2, 4]
    for frame in film.frames:
        p = predictions[frame.index].hidden[0] @ predictions[frame.index].table.T
        best, token = p.double().softmax(-1).max(-1)
        assert frame.tokens == [7, *token[1:4].tolist(), 2]
        assert frame.probability == pytest.approx([1.0, *best[1:4].tolist(), 1.0], rel=1e-5)
        assert frame.given == [True, False, False, False, True]
        assert frame.tau == frame.index / 5


def test_probability_of_a_corrected_prediction_is_cut_to_one():
    base, correction = posterior(seed=1), posterior(seed=2)
    output = Combination((1.0, 10.0), (base, RawOutput(correction.hidden, correction.table)))
    tokens = output.argmax()[:1]
    values = base.probabilities()[0] + 10 * correction.hidden[0] @ correction.table.T
    expected = values.gather(1, tokens[0, :, None])[:, 0]
    assert (expected > 1).any()
    assert torch.allclose(shown_probability(output, tokens), expected.clamp(0, 1))


def test_a_sampler_that_writes_one_token_at_a_time():
    """Given first and last token; the middle ones appear one by one and keep the probability they were drawn with."""
    canvas = Canvas.from_pieces([[7], 3, [2]], batch=2)
    film, so_far, drawn = FilmStrip(), canvas.tokens.clone(), {1: 4, 2: 9, 3: 4}
    expected = {}
    for index, column in enumerate((1, 2, 3)):
        prediction = posterior(length=1, seed=column)
        so_far[:, column] = drawn[column]
        p = (prediction.hidden[0, 0] @ prediction.table.T).double().softmax(-1)
        expected[column] = p[drawn[column]].item()
        film(Written(index, 3, column / 5, prediction, canvas, so_far.clone()))
    first, _, last = film.frames
    assert first.tokens == [7, 4, None, None, 2]
    assert first.probability == pytest.approx([1, expected[1], 0, 0, 1], rel=1e-5)
    assert last.tokens == [7, 4, 9, 4, 2]
    assert last.probability == pytest.approx([1, expected[1], expected[2], expected[3], 1], rel=1e-5)


def test_tokens_become_text():
    tokenizer = ByteTokenizer().build(lambda: iter(()))
    first, second = "é".encode()
    assert spelling(ord("a"), tokenizer) == "a" and spelling(ord(" "), tokenizer) == " "
    assert spelling(first, tokenizer) == tokenizer.token(first)  # half a character
    whole = [*"日é".encode(), None, first, ord("a"), second]
    assert spellings(whole, tokenizer) == ["日", "\u2060", "\u2060", "é", "\u2060", None, spelling(first, tokenizer), "a",
                                           spelling(second, tokenizer)]  # fmt: skip
    frame = FilmStrip()
    frame(Moment(0, 1, 0.0, TokenPosterior(torch.eye(257)[None, [104, 105]] * 50, torch.eye(257)), Canvas.blank(1, 2)))
    shown = frame.frames[0].to_dict(tokenizer)
    assert shown["tokens"] == ["h", "i"] and shown["given"] == [False, False]
