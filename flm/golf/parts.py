"""Small parts of the parameter-golf transformer. B batch, L positions, D width."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rms_norm(x: Tensor) -> Tensor:
    """x (..., D) at a root mean square of 1, without a gain: statistics in fp32 at least, result in x's dtype."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(wide), x.shape[-1:]).to(x.dtype)


def linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """A matrix without bias, orthogonal times `gain` at the start; zero where the gain is 0."""
    layer = nn.Linear(inputs, outputs, bias=False)
    if gain:
        nn.init.orthogonal_(layer.weight, gain)
    else:
        nn.init.zeros_(layer.weight)
    return layer


class BigramTable(nn.Module):
    """What a token and the one before it say together, (B, L, D): rows of a hashed table, projected and scaled.

    Position i > 0 reads row XOR(a * id_i, b * id_(i-1)) mod (rows - 1), position 0 the last row. Zero at the start.

    Args:
        dim: D.
        rows: of the table.
        width: of a row.
        multipliers: a and b.
        gain: of the orthogonal projection at the start.
        scale: what the learned factor starts at.
    """

    def __init__(
        self,
        dim: int,
        rows: int = 4096,
        width: int = 128,
        multipliers: Sequence[int] = (36313, 27191),
        gain: float = 1.0,
        scale: float = 0.05,
    ):
        super().__init__()
        self.multipliers = tuple(multipliers)
        self.table = nn.Parameter(torch.zeros(rows, width))
        self.project = linear(width, dim, gain)
        self.scale = nn.Parameter(torch.tensor(scale))

    def hashed(self, tokens: Tensor) -> Tensor:
        """Row (B, L) of each position of tokens (B, L)."""
        own, before = self.multipliers
        rows = self.table.shape[0]
        pairs = torch.bitwise_xor(own * tokens[:, 1:], before * tokens[:, :-1]) % (rows - 1)
        return torch.cat((torch.full_like(tokens[:, :1], rows - 1), pairs), dim=1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.project(F.embedding(self.hashed(tokens), self.table)) * self.scale


class SmearGate(nn.Module):
    """Mixes a little of the position before into each: (1 - g) x_i + g x_(i-1), g = sigmoid(gate) per channel, 0.5 at first.

    Args:
        dim: D.
        stop_id: a token, of the beginning of a document say, whose positions take nothing from the one before; None for
            the plain gate, which smears across documents.
    """

    def __init__(self, dim: int, stop_id: int | None = None):
        super().__init__()
        self.stop_id = stop_id
        self.gate = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x (B, L, D) and the tokens (B, L) that stand there; what comes before position 0 is 0."""
        gate = torch.sigmoid(self.gate)
        if self.stop_id is not None:
            gate = gate * (tokens != self.stop_id)[..., None]
        return (1 - gate) * x + gate * F.pad(x[:, :-1], (0, 0, 1, 0))


class LeakySquareMLP(nn.Module):
    """W_out (LeakyReLU(W_in x)^2): what is squared is never negative again, and slope 0 is the plain ReLU^2.

    Args:
        dim: D.
        ratio: hidden width over D.
        slope: below 0; the activation there is slope^2 x^2.
    """

    def __init__(self, dim: int, ratio: int, slope: float):
        super().__init__()
        self.slope = slope
        self.into, self.out = linear(dim, ratio * dim, 1.0), linear(ratio * dim, dim, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.leaky_relu(self.into(x), self.slope).square())
