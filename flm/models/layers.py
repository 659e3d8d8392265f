"""Layers that backbones share. B batch, L positions, D width."""

import importlib.util
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.Module):
    """Layer norm with a weight and no bias: statistics in fp32 at least, result in the input's dtype."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.layer_norm(x.to(wide), self.weight.shape, self.weight.to(wide), None, self.eps).to(x.dtype)


class TimeEmbedding(nn.Module):
    """A time (B,) in [0, 1] as a vector (B, cond_dim): cosines and sines, then Linear, SiLU, Linear; never under autocast.

    Args:
        cond_dim: width of the result.
        frequencies: number of features, even: cosines, then sines, of scale * time * 10000^(-2i/frequencies).
        scale: 1 in the published FLM models, where the fastest feature turns by one radian, so that all are nearly polynomials
            of the time; 1000, usual elsewhere, resolves times finely.
    """

    def __init__(self, cond_dim: int, frequencies: int = 256, scale: float = 1.0):
        super().__init__()
        self.frequencies, self.scale = frequencies, scale
        self.mlp = nn.Sequential(nn.Linear(frequencies, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))

    def start_at_zero(self) -> None:
        """Zeroes the last layer, so that the embedding is 0 at initialisation."""
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.zeros_(self.mlp[-1].bias)

    def forward(self, time: Tensor) -> Tensor:
        half = self.frequencies // 2
        weight_dtype = self.mlp[0].weight.dtype
        wide = torch.promote_types(weight_dtype, torch.float32)
        with torch.autocast(time.device.type, enabled=False):
            frequency = torch.exp(torch.arange(half, dtype=wide, device=time.device) * (-math.log(10000.0) / half))
            angle = time.to(wide)[:, None] * (self.scale * frequency)
            return self.mlp(torch.cat((angle.cos(), angle.sin()), dim=-1).to(weight_dtype))


class Modulation(nn.Linear):
    """`chunks` vectors (B, 1, dim) from a condition (B, cond_dim); zero at initialisation (adaLN-zero, arXiv 2212.09748)."""

    def __init__(self, cond_dim: int, dim: int, chunks: int):
        self.chunks = chunks
        super().__init__(cond_dim, chunks * dim)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return super().forward(condition)[:, None].chunk(self.chunks, dim=-1)


class CellVectors(nn.Module):
    """Adds to every position a learned vector for each coordinate of its cell, where the positions are the cells of a grid.

    Args:
        shape: cells along each axis; the last axis runs fastest.
        dim: D.

    Raises:
        ValueError: the shape has no axes, or one below 1.
    """

    def __init__(self, shape: Sequence[int], dim: int):
        super().__init__()
        self.shape = tuple(shape)
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"model.grid={list(shape)} must name at least one axis, each of at least 1")
        # initialised to the length of an embedded token
        self.axes = nn.ParameterList(torch.empty(size, dim).uniform_(-1, 1) * dim**-0.5 for size in self.shape)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, L, D) with the vectors of its positions (L,) added; nothing is added beyond the grid."""
        rest, total = positions, torch.zeros_like(x[0])
        for size, vectors in zip(reversed(self.shape), reversed(list(self.axes)), strict=True):
            total, rest = total + vectors[rest % size], rest // size
        return x + torch.where(rest[:, None] == 0, total, 0.0)


def missing_fp8(device: torch.device) -> str | None:
    """Why a device cannot run products in fp8, in a few words; None if it can. A CPU only rounds as fp8 does."""
    if importlib.util.find_spec("torchao") is None:
        return "torchao is not installed: pip install torchao"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        return "this GPU has no fp8 products; compute capability 8.9 or newer has"
    return None
