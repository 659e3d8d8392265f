"""From values of single tokens to the `Loss` of a micro-batch. B batch, L length."""

from collections.abc import Sequence

from torch import Tensor

from flm.algos.algorithm import Batch, Loss
from flm.draws import Split
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
        weight: (B, L), of the tokens that count.
        tau: (B,), None without a clock.
        scale: (B,) what a sequence's sum stands for that many times, as a bound's density does; None: once.
        metric: name of a metric that is the same without learned weights.
    """
    sums = (per_token * weight).sum(1)
    sums = sums if scale is None else sums * scale.to(sums)
    loss = Loss(total, sums.detach(), weight.sum(1), None if tau is None else tau.detach())
    if metric is not None:
        loss.metrics[metric] = loss.sums.sum(), loss.count
    return loss


def of_parts(loss: Loss, split: Split, names: Sequence[str]) -> Loss:
    """The loss of a batch in the order of a `Split`, each part's own mean among the metrics, in the batch's own order."""
    for name, part in zip(names, split.parts, strict=True):
        if part.exists:
            loss.metrics[f"{name}_nats_per_token"] = loss.sums[part.rows].sum(), loss.counts[part.rows].sum()
    tau = None if loss.tau is None else loss.tau[split.back]
    return Loss(loss.sum, loss.sums[split.back], loss.counts[split.back], tau, loss.metrics)


def token_loss(posterior: TokenPosterior, batch: Batch, tau: Tensor | None = None) -> Loss:
    """Cross-entropy of the data's tokens, those that count."""
    total, per_token = cross_entropy(posterior, batch.tokens, batch.weight)
    return summed(total, per_token, batch.weight, tau)
