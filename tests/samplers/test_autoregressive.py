"""The sampler's draws against exact laws, and cached against uncached writing."""

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from chi_square import chi_square_limit

from flm.models.causal import CausalTransformer
from flm.models.dit import DiT
from flm.posterior import TokenPosterior
from flm.samplers.autoregressive import AutoregressiveSampler
from flm.samplers.canvas import Canvas
from flm.schema import check

LEVEL = 1e-3  # of each chi-square test; seeds are fixed


def build(vocab_size=3, length=3, seed=0, scale=0.5):
    torch.manual_seed(seed)
    sizes = {"length": length, "hidden_size": 12, "num_blocks": 2, "num_heads": 2, "dropout": 0.0}
    model = CausalTransformer(partial(DiT, **sizes), vocab_size).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn_like(parameter)
    return model


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def uncached(model, canvas, seed, temperature=1.0, top_k=None, top_p=None):
    """One forward pass over all positions for every token."""
    tokens, draws = canvas.tokens.clone(), generator(seed)
    for j in range(tokens.shape[1]):
        if canvas.editable[:, j].any():
            probabilities = model(tokens).tempered(temperature).probabilities()[:, j]
            drawn = replace(as_posterior(probabilities.log()), top_k=top_k, top_p=top_p).draw(draws)[:, 0]
            tokens[:, j] = torch.where(canvas.editable[:, j], drawn, tokens[:, j])
    return tokens


def as_posterior(logits):
    """A posterior (B, 1) of the given logits (B, V)."""
    return TokenPosterior(logits[:, None], torch.eye(logits.shape[1], dtype=logits.dtype))


def uneven(batch, length, vocab_size):
    """Every sequence with given tokens of its own."""
    given = torch.rand(batch, length, generator=generator(5)) < 0.4
    tokens = torch.randint(vocab_size, (batch, length), generator=generator(6))
    return Canvas(torch.where(given, tokens, 0), ~given)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6}, {"top_k": 4}, {"temperature": 1.5, "top_p": 0.8}], ids=str)
@pytest.mark.parametrize("shape", ["blank", "prompt", "infill", "uneven"])
def test_cached_equals_uncached_token_for_token(shape, options):
    model, length, batch = build(11, 10), 10, 6
    canvas = {
        "blank": Canvas.blank(batch, length),
        "prompt": Canvas.from_pieces([[4, 5, 6, 7], 6], batch),
        "infill": Canvas.from_pieces([2, [9, 9, 1], 3, [0], 1], batch),
        "uneven": uneven(batch, length, 11),
    }[shape]
    found = AutoregressiveSampler(**options)(model, canvas, 1, generator(7))
    assert torch.equal(found, uncached(model, canvas, 7, **options))
    assert torch.equal(found[~canvas.editable], canvas.tokens[~canvas.editable])
    assert (found != found[0]).any()  # not a comparison of constants
    assert not torch.equal(found, AutoregressiveSampler(**options)(model, canvas, 1, generator(8)))


def exact_law(model, canvas, temperature=1.0, top_k=None, top_p=None):
    """Probability of each of the V^L sequences, from the definitions, one next-token law at a time."""
    vocab_size, tokens, editable = model.body.vocab_size, canvas.tokens[0].tolist(), canvas.editable[0].tolist()

    def truncated(p):
        ranked = sorted(range(vocab_size), key=lambda token: -p[token])
        if top_k is not None:
            ranked = ranked[:top_k]
        if top_p is not None:
            total, mass, kept = sum(p[token] for token in ranked), 0.0, []
            for token in ranked:
                kept.append(token)
                mass += p[token]
                if mass >= top_p * total:
                    break
            ranked = kept
        total = sum(p[token] for token in ranked)
        return [p[token] / total if token in ranked else 0.0 for token in range(vocab_size)]

    law = []
    for sequence in itertools.product(range(vocab_size), repeat=len(tokens)):
        log_p = model(torch.tensor([sequence])).probabilities()[0].log() / temperature
        probability = 1.0
        for i, token in enumerate(sequence):
            if editable[i]:
                probability *= truncated(log_p[i].softmax(-1).tolist())[token]
            else:
                probability *= token == tokens[i]
        law.append(probability)
    return torch.tensor(law, dtype=torch.float64)


BLANK, PROMPT, HOLES = [3], [[2], 2], [1, [2], 1]


@pytest.mark.parametrize(
    "pieces, options",
    [
        (BLANK, {}),
        (PROMPT, {}),
        (HOLES, {}),
        (BLANK, {"temperature": 0.7}),
        (BLANK, {"top_k": 2}),
        (BLANK, {"top_p": 0.7}),
        (BLANK, {"temperature": 1.7, "top_k": 2, "top_p": 0.6}),
    ],
    ids=str,
)
def test_samples_follow_the_exact_law(pieces, options):
    model, count = build(scale=0.35), 20_000
    tokens = AutoregressiveSampler(**options)(model, Canvas.from_pieces(pieces, count), 1, generator(3))
    found = torch.bincount(tokens @ torch.tensor([9, 3, 1]), minlength=27).double()
    law = exact_law(model, Canvas.from_pieces(pieces, 1), **options)
    assert law.sum().item() == pytest.approx(1)
    possible = law > 0
    assert found[~possible].sum() == 0
    expected = law[possible] * count
    assert expected.min() > 5  # what the chi-square law needs
    statistic = ((found[possible] - expected) ** 2 / expected).sum().item()
    assert statistic < chi_square_limit(LEVEL, int(possible.sum()) - 1)
    if options:  # the test tells this law from the plain one
        plain = exact_law(model, Canvas.from_pieces(pieces, 1)) * count
        assert ((found - plain) ** 2 / plain).sum() > 10 * chi_square_limit(LEVEL, 26)


class Counting:
    """Counts network evaluations and the positions they read."""

    def __init__(self, model):
        self.model, self.read = model, []
        self.new_cache = model.new_cache

    def next_token(self, tokens, cache):
        self.read.append(tokens.shape[1])
        return self.model.next_token(tokens, cache)


def test_one_evaluation_per_position_to_fill_and_what_on_step_is_told():
    model, moments = Counting(build(11, 10)), []
    canvas = Canvas.from_pieces([[4, 5, 6], 2, [9, 9, 1], 2], 3)
    tokens = AutoregressiveSampler()(model, canvas, 64, generator(), moments.append)
    assert model.read == [3, 1, 4, 1]
    assert [(m.index, m.steps) for m in moments] == [(i, 4) for i in range(4)]
    assert [m.tau for m in moments] == [0.3, 0.4, 0.8, 0.9]
    for moment, column in zip(moments, (3, 4, 8, 9), strict=True):
        assert torch.equal(moment.tokens()[:, : column + 1], tokens[:, : column + 1])
        still = canvas.editable[:, column + 1 :]
        assert not moment.tokens()[:, column + 1 :][still].any()
        exact = model.model(tokens).probabilities()[:, column]
        torch.testing.assert_close(moment.posterior.probabilities()[:, 0], exact, rtol=0, atol=1e-10)


def test_the_number_of_steps_changes_nothing_and_a_full_canvas_stays():
    model = build(11, 10)
    one, many = (AutoregressiveSampler()(model, Canvas.blank(4, 10), steps, generator(2)) for steps in (1, 64))
    assert torch.equal(one, many)
    full = Canvas.from_pieces([[1, 2, 3]], 2)
    assert torch.equal(AutoregressiveSampler()(model, full, 1, generator()), full.tokens)


def test_it_writes_beyond_the_length_trained_on():
    assert AutoregressiveSampler()(build(5, 3), Canvas.blank(2, 12), 1, generator()).shape == (2, 12)


@pytest.mark.parametrize(
    "options",
    [{"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}],
    ids=str,
)
def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(ValueError, match=f"sampling.{next(iter(options))} must"):
        check(AutoregressiveSampler, options, "sampling")


def test_steps_must_be_positive():
    with pytest.raises(ValueError, match="sampling.steps"):
        AutoregressiveSampler()(build(), Canvas.blank(1, 3), 0, generator())
