"""Attention's branches against each other, against sums written out by hand, and under forward-mode derivatives."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex_module
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from flm import posterior
from flm.models import attention as attention_module
from flm.models.attention import (
    DocumentMask,
    _capped,
    attention,
    document_mask,
    forward_mode_attention,
    rotary_table,
    rotate,
)
from flm.models.dit import DiT

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


def dense(q: Tensor, k: Tensor, v: Tensor, softcap: float | None, causal: bool, mask: Tensor | None) -> Tensor:
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    triangle = torch.ones(scores.shape[-2:], dtype=torch.bool).tril() if causal else torch.tensor(True)
    seen = triangle if mask is None else triangle & mask
    return scores.masked_fill(~seen, -math.inf).softmax(-1) @ v


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("softcap", [None, 1.0])
def test_forward_mode_derivatives_are_those_of_the_dense_formula_and_of_differences(
    qkv, documents, softcap, causal, masked, monkeypatch
):
    monkeypatch.setitem(posterior.CHUNK_ELEMENTS, "cpu", 2 * B * H * L)  # two queries a chunk
    generator, mask = torch.Generator().manual_seed(1), documents if masked else None
    tangents = tuple(torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in qkv)

    def f(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, softcap, causal, mask)

    with forward_mode_attention(), torch.no_grad():
        value, derivative = torch.func.jvp(f, qkv, tangents)
    exact = torch.func.jvp(lambda *x: dense(*x, softcap, causal, mask), qkv, tangents)
    torch.testing.assert_close((value, derivative), exact, rtol=0, atol=1e-13)
    h = 1e-5
    ahead, behind = (f(*(x + sign * h * t for x, t in zip(qkv, tangents, strict=True))) for sign in (1, -1))
    torch.testing.assert_close(derivative, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-7)


class Largest(TorchDispatchMode):
    """The most elements of a tensor that is made inside."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return found


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("softcap", [None, 1.0])
def test_forward_mode_holds_no_scores(softcap, causal, monkeypatch):
    size, head_dim = 512, 16
    monkeypatch.setitem(posterior.CHUNK_ELEMENTS, "cpu", 2 * 16 * size)  # of two heads
    generator = torch.Generator().manual_seed(1)
    primals, tangents = torch.randn(2, 3, 1, 2, size, head_dim, generator=generator).unbind(0)
    with forward_mode_attention(), torch.no_grad(), Largest() as largest:
        torch.func.jvp(lambda *x: attention(*x, softcap, causal), tuple(primals), tuple(tangents))
    if softcap is None:
        assert largest.elements == 2 * size * 2 * head_dim  # queries beside zeros
    else:
        assert largest.elements == (size * size if causal else 2 * 16 * size)  # a chunk, and a triangle without heads
    with Largest() as largest:
        dense(*primals, softcap, causal, None)
    assert largest.elements == 2 * size * size


@pytest.fixture
def flexed(monkeypatch):
    """flex_attention as CUDA has it, uncompiled on the CPU, where its gradients are there but refused."""
    monkeypatch.setattr(attention_module, "FLEX_ON", {"cpu"})
    monkeypatch.setattr(attention_module, "_compiled_flex_attention", lambda: flex_attention)
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)


IDS = torch.tensor([[0, 0, 0, 1, 1, 1, -1], [5, 5, 2, 2, 2, 5, 5]])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("softcap", [None, 1.0])
def test_blocks_of_documents_have_the_values_and_gradients_of_the_dense_mask(qkv, softcap, causal, flexed):
    inputs = tuple(x.clone().requires_grad_() for x in qkv)
    together = document_mask(IDS)
    blocks = together.for_kernels(torch.empty(0), 16, causal)
    assert isinstance(blocks, BlockMask) and together.for_kernels(torch.empty(0), 16, causal) is blocks
    found = attention(*inputs, softcap, causal, blocks)
    exact = dense(*inputs, softcap, causal, together.dense)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)
    upstream = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(2))
    gradients = (torch.autograd.grad(out, inputs, upstream) for out in (found, exact))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_tiles_without_a_pair_are_left_out():
    ids = torch.arange(512).div(128, rounding_mode="floor")[None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_module, "FLEX_ON", {"cpu"})
        blocks = document_mask(ids).for_kernels(torch.empty(0), 16, False)
    assert blocks.sparsity() == 75.0 and torch.equal(blocks.full_kv_num_blocks, torch.ones(1, 1, 4, dtype=torch.int32))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_network_reads_blocks_made_once_for_all_of_its_layers(softcap, flexed, monkeypatch):
    torch.manual_seed(0)
    network = DiT(11, L, 32, 3, 2, dropout=0.0, attention_softcap=softcap, neighbours=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    made, original = [], attention_module.create_block_mask
    monkeypatch.setattr(attention_module, "create_block_mask", lambda *a, **k: made.append(1) or original(*a, **k))
    state, tau, mask = torch.randn(2, L, 32), torch.tensor([0.2, 0.7]), document_mask(IDS)
    network.hidden(state, tau, mask=mask)
    found = network.hidden(state, tau, mask=mask)
    assert len(made) == 1
    others = network.hidden(state, tau, mask=DocumentMask(IDS).dense)
    torch.testing.assert_close(found, others, rtol=1e-4, atol=1e-5)
    weights = [p for p in network.parameters() if p.requires_grad and p is not network.input_table]
    weights = [p for p in weights if p not in set(network.output_layer.linear.parameters())]
    pairs = zip(*(torch.autograd.grad(out.square().sum(), weights) for out in (found, others)), strict=True)
    assert max((a - b).norm() / b.norm() for a, b in pairs) < 1e-4
    rows = network.hidden(state[1:], tau[1:], mask=mask[slice(1, 2)])
    torch.testing.assert_close(rows, found[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_networks_of_several_softcaps_in_one_process(compiled, flexed, monkeypatch):
    """Numbers that differ between two calls are variables to torch.compile, which flex_attention refuses."""
    backend = {"backend": "aot_eager"}
    if compiled:
        monkeypatch.setattr(attention_module, "_compiled_flex_attention", lambda: torch.compile(flex_attention, **backend))
    torch._dynamo.reset()
    state, tau, mask = torch.randn(2, L, 32), torch.tensor([0.2, 0.7]), document_mask(IDS)
    for softcap in (5.0, 2.0, None, 5.0, 1.0):
        torch.manual_seed(0)
        network = DiT(11, L, 32, 2, 2, dropout=0.0, attention_softcap=softcap)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        expected = network.hidden(state, tau, mask=mask.dense)
        if compiled:
            for block in network.blocks:
                block.compile(**backend)
        found = network.hidden(state, tau, mask=mask)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        weight = network.blocks[0].attn_qkv.weight
        a, b = (torch.autograd.grad(out.square().sum(), weight)[0] for out in (found, expected))
        assert (a - b).norm() / b.norm() < 1e-4
    torch._dynamo.reset()


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
