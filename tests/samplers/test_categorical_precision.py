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
