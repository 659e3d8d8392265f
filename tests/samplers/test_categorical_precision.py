"""Categorical draws keep the tail: the defect of float32 noise (arXiv 2409.02908), and that it is not ours.

Float32 uniforms are multiples of 2^-24, so Gumbel noise made of them never exceeds 16.6: a token that is e^17 times less
probable than another is all but never drawn, alone or with a million others like it. That acts as a lower temperature.
"""

import pytest
import torch

from flm.posterior import TokenPosterior

TOKENS, RARE = 2**16, 2e-8  # one common token, and the rest so rare that together they make 0.13 percent
COUNT = 2**14


def posterior(count):
    """The same prediction at `count` positions."""
    p = torch.full((TOKENS, 1), RARE, dtype=torch.float64)
    p[0] = 1 - RARE * (TOKENS - 1)
    return TokenPosterior(torch.ones(1, count, 1), p.log().float())


def gumbel_draw(logits, generator, dtype):
    """The draw of public code: the arg-max of logits plus Gumbel noise, whatever it is cast to afterwards."""
    u = torch.rand(logits.shape, generator=generator, dtype=dtype)
    return (logits.double() - torch.log(-torch.log(u))).argmax(-1)


@pytest.mark.slow
def test_rare_tokens_are_drawn_as_often_as_they_should_be():
    expected = COUNT * RARE * (TOKENS - 1)  # 21.5; the bounds hold with probability 0.9987 for a Poisson count
    low, high = 9, 38
    ours = int((posterior(COUNT).draw(torch.Generator().manual_seed(0)) > 0).sum())
    assert low <= ours <= high and 21 < expected < 22

    generator, theirs = torch.Generator().manual_seed(0), 0
    for _ in range(COUNT // 256):
        logits = next(iter(posterior(256).logit_chunks()))[1]
        theirs += int((gumbel_draw(logits, generator, torch.float32) > 0).sum())
    assert theirs < low


def test_the_draw_inverts_the_distribution_in_float64():
    """What the slow test finds by counting, without the counting."""
    vocab_size, count = 2**14, 1000
    logits = torch.randn(vocab_size, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64).float()
    like = TokenPosterior(torch.ones(1, count, 1), logits)
    generator, copy = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    tokens = like.draw(generator)[0]
    u = torch.rand(count, 1, generator=copy, dtype=torch.float64)
    assert torch.equal(generator.get_state(), copy.get_state())  # one uniform a token, of 53 bits: 24 take half as many
    p = logits[:, 0].double().softmax(0)
    assert torch.equal(tokens, torch.searchsorted(p.cumsum(0), u[:, 0], right=True))


@pytest.mark.parametrize("peaked", [False, True])
def test_what_products_in_bf16_would_do_to_draws(peaked):
    """Of a hidden state of 768 numbers, summed in float64: the total variation between what is drawn and what should be.

    One product of numbers rounded to bf16 moves a thousandth of the probability where logits are flat. What is drawn in
    float32 is off by a ten-thousandth of that, so that is what draws and arg-max read.
    """
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(8192, 768, generator=generator) * 768**-0.5
    hidden = torch.randn(64, 768, generator=generator)
    if peaked:
        hidden = 0.3 * hidden + 25 * table[torch.randint(8192, (64,), generator=generator)]
    exact = hidden.double() @ table.double().T
    p = exact.softmax(-1)
    entropy = torch.special.entr(p).sum(-1).mean()
    assert entropy < 0.1 if peaked else entropy > 8
    off = []
    for logits in (
        hidden.bfloat16().double() @ table.bfloat16().double().T,
        next(TokenPosterior(hidden[None], table).logit_chunks())[1],
    ):
        off.append(((logits.double().softmax(-1) - p).abs().sum(-1) / 2).max().item())
        assert torch.equal(logits.argmax(-1), exact.argmax(-1))
    if not peaked:
        assert 5e-4 < off[0] < 2e-3
    assert off[1] < off[0] / 1000 and off[1] < 1e-6
