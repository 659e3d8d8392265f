"""The `Loss` of a micro-batch from the losses of its tokens, and a learned weight over time. B batch, L length."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flm.algos.algorithm import Batch, Loss
from flm.draws import Split
from flm.models.layers import TimeEmbedding
from flm.posterior import TokenPosterior
from flm.vocabulary_losses import cross_entropy


def summed(
    total: Tensor,
    per_token: Tensor,
    weight: Tensor,
    tau: Tensor | None = None,
    scale: Tensor | None = None,
    metric: str | None = None,
) -> Loss:
    """The loss of a sum over tokens.

    Args:
        total: differentiable scalar, as a rule sum of per_token * weight * scale.
        per_token: (B, L), detached.
        weight: (B, L), 0 for tokens that do not count.
        tau: (B,), None without a clock.
        scale: (B,) factor of each sequence, as the weight of its random time in a bound; None: 1.
        metric: name under which the mean without learned weights is logged too; None: it is not.
    """
    sums = (per_token * weight).sum(1)
    sums = sums if scale is None else sums * scale.to(sums)
    loss = Loss(total, sums.detach(), weight.sum(1), None if tau is None else tau.detach())
    if metric is not None:
        loss.metrics[metric] = loss.sums.sum(), loss.count
    return loss


def of_parts(loss: Loss, split: Split, names: Sequence[str]) -> Loss:
    """`loss` is in the order of a `Split`: the same in the batch's own order, with the mean of each part as a metric."""
    for name, part in zip(names, split.parts, strict=True):
        if part.exists:
            loss.metrics[f"{name}_nats_per_token"] = loss.sums[part.rows].sum(), loss.counts[part.rows].sum()
    tau = None if loss.tau is None else loss.tau[split.back]
    return Loss(loss.sum, loss.sums[split.back], loss.counts[split.back], tau, loss.metrics)


def token_loss(posterior: TokenPosterior, batch: Batch, tau: Tensor | None = None) -> Loss:
    """Cross-entropy of the batch's tokens, weighted."""
    total, per_token = cross_entropy(posterior, batch.tokens, batch.weight)
    return summed(total, per_token, batch.weight, tau)


class LossWeight(nn.Module):
    """w(tau) of the learned loss weighting exp(-w) loss + w (arXiv 2312.02696, section 3.3). It starts at 0."""

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
