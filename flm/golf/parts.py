"""Small layers of the parameter-golf transformer. B batch, L positions, D width."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rms_norm(x: Tensor) -> Tensor:
    """x (..., D) scaled to a root mean square of 1, without a gain. Computed in fp32 or better, returned in x's dtype."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(wide), x.shape[-1:]).to(x.dtype)


def linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """A linear layer without bias. Its matrix starts as `gain` times an orthogonal one, or at zero if the gain is 0."""
    layer = nn.Linear(inputs, outputs, bias=False)
    if gain:
        nn.init.orthogonal_(layer.weight, gain)
    else:
        nn.init.zeros_(layer.weight)
    return layer


class BigramTable(nn.Module):
    """An embedding (B, L, D) of each token together with the one before it, from a hashed table, projected and scaled.

    Position i > 0 reads row XOR(a * id_i, b * id_(i-1)) mod (rows - 1), and position 0 reads the last row. The table starts at
    zero.

    Args:
        dim: D.
        rows: number of rows of the table; at least 2.
        width: width of a row.
        multipliers: a and b.
        gain: of the projection, see `linear`.
        scale: initial value of the learned factor.
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
        """The row (B, L) of the table that each position of tokens (B, L) reads."""
        own, before = self.multipliers
        rows = self.table.shape[0]
        pairs = torch.bitwise_xor(own * tokens[:, 1:], before * tokens[:, :-1]) % (rows - 1)
        return torch.cat((torch.full_like(tokens[:, :1], rows - 1), pairs), dim=1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.project(F.embedding(self.hashed(tokens), self.table)) * self.scale


class SmearGate(nn.Module):
    """Mixes each position with the one before: (1 - g) x_i + g x_(i-1), with g = sigmoid(gate) per channel, at first 0.5.

    Args:
        dim: D.
        stop_id: a token, for example the one that begins a document, whose positions are not mixed; None: all positions are
            mixed, also across documents.
    """

    def __init__(self, dim: int, stop_id: int | None = None):
        super().__init__()
        self.stop_id = stop_id
        self.gate = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """The mixed x (B, L, D) at the positions of tokens (B, L). Position 0 is mixed with zeros."""
        gate = torch.sigmoid(self.gate)
        if self.stop_id is not None:
            gate = gate * (tokens != self.stop_id)[..., None]
        return (1 - gate) * x + gate * F.pad(x[:, :-1], (0, 0, 1, 0))


class LeakySquareMLP(nn.Module):
    """W_out (LeakyReLU(W_in x)^2). The activation is never negative: x^2 above 0, and slope^2 x^2 below.

    Args:
        dim: D.
        ratio: hidden width over D.
        slope: of the LeakyReLU below 0; 0 is ReLU^2.
    """

    def __init__(self, dim: int, ratio: int, slope: float):
        super().__init__()
        self.slope = slope
        self.into, self.out = linear(dim, ratio * dim, 1.0), linear(ratio * dim, dim, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.leaky_relu(self.into(x), self.slope).square())
