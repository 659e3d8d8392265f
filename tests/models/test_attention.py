"""Attention's branches against each other, against sums written out by hand, and under forward-mode derivatives."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from flm.models.attention import _capped, attention, forward_mode_attention, rotary_table, rotate

B, H, L, DH = 2, 3, 7, 8


@pytest.fixture
def qkv() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    # large scores, so that a softcap of 1 matters
    return tuple(2 * torch.randn(B, H, L, DH, dtype=torch.float64, generator=generator) for _ in range(3))


@pytest.fixture
def documents() -> Tensor:
    """Two packed documents, cut at another place in each sequence, where positions from 2 on do not see 0."""
    document = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]])
    mask = (document[:, :, None] == document[:, None, :])[:, None]
    mask[..., 2:, 0] = False
    return mask


def by_hand(q: Tensor, k: Tensor, v: Tensor, softcap: float | None, causal: bool, mask: Tensor | None) -> Tensor:
    """Position by position, in plain Python."""
    out = torch.zeros_like(v)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                seen, weights = [], []
                for j in range(k.shape[2]):
                    if (causal and j > i) or (mask is not None and not mask.expand(B, H, L, L)[b, h, i, j]):
                        continue
                    score = float(q[b, h, i] @ k[b, h, j]) / math.sqrt(DH)
                    seen.append(j)
                    weights.append(math.exp(score if softcap is None else softcap * math.tanh(score / softcap)))
                for j, w in zip(seen, weights, strict=True):
                    out[b, h, i] += w / sum(weights) * v[b, h, j]
    return out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("softcap", [None, 1.0, 50.0])
def test_attention_is_the_weighted_mean_it_should_be(qkv, documents, softcap, causal, masked):
    mask = documents if masked else None
    expected = by_hand(*qkv, softcap, causal, mask)
    torch.testing.assert_close(attention(*qkv, softcap, causal, mask), expected, rtol=0, atol=1e-12)
    with forward_mode_attention():
        torch.testing.assert_close(attention(*qkv, softcap, causal, mask), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_a_huge_softcap_is_none(qkv, documents, causal, masked):
    mask = documents if masked else None
    plain, capped = (attention(*qkv, softcap, causal, mask) for softcap in (None, 1e7))
    torch.testing.assert_close(plain, capped, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_what_flex_attention_is_told_on_a_gpu_means_the_same(qkv, documents, causal, masked):
    mask = documents if masked else None
    score_mod = _capped(1.0, causal, mask.expand(B, H, L, L) if masked else None)
    flexed = flex_attention(*qkv, score_mod=score_mod)
    torch.testing.assert_close(flexed, by_hand(*qkv, 1.0, causal, mask), rtol=0, atol=1e-12)


def test_scores_of_half_precision_inputs_are_capped_in_single_precision(qkv):
    half = tuple(x.bfloat16() for x in qkv)
    out = attention(*half, 5.0)
    assert out.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention(*half, 5.0), out)
    # nothing is rounded but the result
    exact = by_hand(*(x.double() for x in half), 5.0, False, None)
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 1.0])
def test_forward_mode_derivatives_pass_and_match_differences(qkv, softcap):
    generator = torch.Generator().manual_seed(1)
    tangents = tuple(torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in qkv)

    def f(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, softcap)

    with forward_mode_attention():
        _, derivative = torch.func.jvp(f, qkv, tangents)
    h = 1e-5
    ahead, behind = (f(*(x + sign * h * t for x, t in zip(qkv, tangents, strict=True))) for sign in (1, -1))
    torch.testing.assert_close(derivative, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-7)


def test_backward_matches_differences(qkv, documents):
    inputs = tuple(x[:1, :1, :4].clone().requires_grad_() for x in qkv)
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, 1.0, True, documents[:1, :, :4, :4]), inputs)


def test_causal_attention_over_a_cache_is_refused(qkv):
    q, k, v = qkv
    with pytest.raises(ValueError, match="pass a mask"):
        attention(q[:, :, -1:], k, v, causal=True)


def test_rotation_turns_each_pair_by_position_times_frequency():
    x = torch.randn(1, 1, 5, DH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    turned = rotate(x, *rotary_table(torch.arange(5), DH))
    for position in range(5):
        for j in range(DH // 2):
            pair = complex(x[0, 0, position, j], x[0, 0, position, j + DH // 2])
            angle = position * 10000 ** (-2 * j / DH)
            expected = pair * complex(math.cos(angle), math.sin(angle))
            assert abs(turned[0, 0, position, j].item() - expected.real) < 1e-6
            assert abs(turned[0, 0, position, j + DH // 2].item() - expected.imag) < 1e-6


def test_rotated_scores_depend_on_the_distance_alone():
    generator = torch.Generator().manual_seed(3)
    q, k = torch.randn(2, 1, 1, 1, DH, generator=generator).expand(2, 1, 1, 9, DH)
    scores = []
    for shift in (0, 1000):
        cos, sin = rotary_table(torch.arange(9) + shift, DH)
        scores.append((rotate(q, cos, sin) @ rotate(k, cos, sin).mT)[0, 0])
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-5)
    for offset in range(-8, 9):
        diagonal = scores[0].diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)
    assert scores[0][0].std() > 0.1  # and it does depend on the distance


def test_rotation_keeps_half_precision_but_computes_in_single():
    x = torch.randn(1, 1, 600, DH, generator=torch.Generator().manual_seed(4)).bfloat16()
    table = rotary_table(torch.arange(600), DH)
    turned = rotate(x, *table)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(x.float(), *table).bfloat16())
