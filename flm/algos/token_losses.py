"""From values of single tokens to the `Loss` of a micro-batch. B batch, L length."""

from torch import Tensor

from flm.algos.algorithm import Batch, Loss
from flm.posterior import TokenPosterior
from flm.vocabulary_losses import cross_entropy


def summed(total: Tensor, per_token: Tensor, weight: Tensor, tau: Tensor | None = None, scale: Tensor | None = None) -> Loss:
    """The loss of a sum over tokens.

    Args:
        total: differentiable scalar, as a rule sum of per_token * weight * scale.
        per_token: (B, L), detached.
        weight: (B, L), of the tokens that count.
        tau: (B,), None without a clock.
        scale: (B,) what a sequence's sum stands for that many times, as a bound's density does; None: once.
    """
    sums = (per_token * weight).sum(1)
    sums = sums if scale is None else sums * scale.to(sums)
    return Loss(total, sums.detach(), weight.sum(1), None if tau is None else tau.detach())


def token_loss(posterior: TokenPosterior, batch: Batch, tau: Tensor | None = None) -> Loss:
    """Cross-entropy of the data's tokens, those that count."""
    total, per_token = cross_entropy(posterior, batch.tokens, batch.weight)
    return summed(total, per_token, batch.weight, tau)
