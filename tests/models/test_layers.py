"""Norm, time embedding and modulation against their formulas."""

import math

import torch
from torch import nn

from flm.models.layers import LayerNorm, Modulation, TimeEmbedding


def test_layer_norm_formula():
    x = 3 + 2 * torch.randn(4, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm = LayerNorm(16).double()
    nn.init.normal_(norm.weight)
    variance = x.var(-1, unbiased=False, keepdim=True)
    expected = (x - x.mean(-1, keepdim=True)) / (variance + 1e-5).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-12)
    assert [name for name, _ in norm.named_parameters()] == ["weight"]


def test_layer_norm_statistics_are_single_precision_for_half_inputs_and_under_autocast():
    x = (100 + torch.randn(3, 64, generator=torch.Generator().manual_seed(1))).bfloat16()
    norm = LayerNorm(64)
    assert torch.equal(norm(x), norm(x.float()).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x.float()), LayerNorm(64)(x.float()))
        assert norm(x.float()).dtype == torch.float32


def test_time_embedding_formula():
    for scale in (1.0, 1000.0):
        embedding = TimeEmbedding(6, frequencies=256, scale=scale).double()
        tau = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
        first, _, second = embedding.mlp
        for row, t in enumerate(tau.tolist()):
            angle = [scale * t * 10000 ** (-i / 128) for i in range(128)]
            features = torch.tensor([*map(math.cos, angle), *map(math.sin, angle)], dtype=torch.float64)
            hidden = first.weight @ features + first.bias
            expected = second.weight @ (hidden * hidden.sigmoid()) + second.bias
            torch.testing.assert_close(embedding(tau)[row], expected, rtol=0, atol=1e-9)


def test_time_embedding_ignores_autocast_and_accepts_double_times():
    embedding = TimeEmbedding(6)
    tau = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    plain = embedding(tau)
    assert plain.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embedding(tau.float()), plain)


def test_modulation_starts_at_zero_and_cuts_consecutive_chunks():
    modulation = Modulation(4, 3, chunks=2)
    condition = torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
    assert all(not chunk.any() for chunk in modulation(condition))
    nn.init.normal_(modulation.weight)
    shift, scale = modulation(condition)
    torch.testing.assert_close(shift[:, 0], condition @ modulation.weight[:3].T)
    torch.testing.assert_close(scale[:, 0], condition @ modulation.weight[3:].T)
    assert sorted(dict(modulation.named_parameters())) == ["bias", "weight"]
