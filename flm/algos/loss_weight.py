"""Learned weight of the loss over time: exp(-w) loss + w (arXiv 2312.02696, section 3.3)."""

import torch
from torch import Tensor, nn

from flm.models.layers import TimeEmbedding


class LossWeight(nn.Module):
    """w(tau), 0 everywhere at the start."""

    def __init__(self, width: int = 128):
        super().__init__()
        self.s_embed = TimeEmbedding(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.zeros_(self.mlp[-1].bias)

    def forward(self, tau: Tensor) -> Tensor:
        """tau (B,) to w (B,)."""
        return self.mlp(self.s_embed(tau))[:, 0]


def apply_loss_weight(log_scale: Tensor, weight: Tensor, loss) -> tuple[Tensor, Tensor]:
    """exp(-w) loss + w per token, for a loss that is a weighted sum with constant weights.

    Args:
        log_scale: w (B,).
        weight: (B, L), constant.
        loss: called with a constant weight (B, L), gives the weighted sum and the loss of each token (B, L), detached.

    Returns:
        As loss.
    """
    factor = torch.exp(-log_scale)
    total, per_token = loss(weight * factor.detach()[:, None])
    per_sequence = (per_token * weight).sum(1)
    # the value of `total` is right already; the middle term, zero in value, carries the gradient to w
    total = total + (per_sequence * (factor - factor.detach())).sum() + (weight.sum(1) * log_scale).sum()
    return total, per_token
