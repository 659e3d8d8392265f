"""Validation loss along the clock, beside what a decoder without context would reach.

What the mean tells of a likelihood, the algorithm says (`validation_says`). The cross-entropy of a denoiser averages over
noise levels: it is none, and two algorithms or two clocks cannot be compared by it. B batch, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flm.algos.algorithm import Loss

BUCKETS = 10
BUCKET_CENTRES = (torch.arange(BUCKETS, dtype=torch.float64) + 0.5) / BUCKETS


class Tally:
    """Sums losses and tokens per bucket of the clock; the last column is for sequences without a clock.

    Args:
        measure: what the loss is, with unit, `Algorithm.validation_metric`.
    """

    def __init__(self, measure: str = "denoising_ce_nats") -> None:
        self.measure = measure
        self.sums = torch.zeros(2, BUCKETS + 1, dtype=torch.float64)

    def add(self, loss: Loss) -> None:
        counts = loss.counts.cpu().double()
        nats = torch.where(counts > 0, loss.sums.cpu().double(), 0.0)
        if loss.tau is None:
            bucket = torch.full(nats.shape, BUCKETS)
        else:
            bucket = (loss.tau.detach().cpu().double() * BUCKETS).long().clamp_(0, BUCKETS - 1)
        self.sums[0].index_add_(0, bucket, nats)
        self.sums[1].index_add_(0, bucket, counts)

    def report(self, context_free: Tensor | None = None, reduce: Callable[[Tensor], Tensor] = lambda x: x) -> "Report":
        """The means.

        Args:
            context_free: (BUCKETS,) nats per token of the best decoder without context at the bucket centres.
            reduce: adds a tensor up over all processes; sums and counts are reduced, never means.

        Raises:
            ValueError: no token was seen.
        """
        nats, tokens = reduce(self.sums).cpu()
        if not tokens.sum() > 0:
            raise ValueError("validation saw no token: trainer.limit_val_batches or the validation data is empty")
        clocked = tokens[:BUCKETS]
        by_tau = [float(n / t) if t > 0 else None for n, t in zip(nats, clocked, strict=False)]
        reference, reference_mean = None, None
        if context_free is not None and clocked.sum() > 0:
            context_free = context_free.detach().cpu().double()
            reference = context_free.tolist()
            reference_mean = float((context_free * clocked).sum() / clocked.sum())
        return Report(self.measure, float(nats.sum() / tokens.sum()), by_tau, reference, reference_mean)


@dataclass(frozen=True)
class Report:
    """Loss per token over the validation data.

    Attributes:
        measure: what the loss is, with unit.
        mean: over all tokens.
        by_tau: mean per tenth of the clock, None where no sequence fell; all None for an algorithm without a clock.
        context_free: at the centre of each tenth; None where the notion does not apply.
        context_free_mean: the same averaged with the weights of `mean`.
    """

    measure: str
    mean: float
    by_tau: list[float | None]
    context_free: list[float] | None = None
    context_free_mean: float | None = None

    @property
    def has_clock(self) -> bool:
        return any(value is not None for value in self.by_tau)

    @property
    def learned_nothing(self) -> bool:
        """Whether the model is nowhere on the clock a hundredth below what can be had without context."""
        reached = [] if self.context_free is None else list(zip(self.by_tau, self.context_free, strict=True))
        return bool(reached) and all(model is None or model > 0.99 * free for model, free in reached)

    def metrics(self) -> dict[str, float]:
        """What is logged."""
        found = {f"val/{self.measure}_per_token": self.mean}
        found |= {f"val/{self.measure}_tau_{bucket_name(i)}": v for i, v in enumerate(self.by_tau) if v is not None}
        if self.context_free is not None and self.context_free_mean is not None:
            found["val/context_free_ce_nats_per_token"] = self.context_free_mean
            found |= {f"val/context_free_ce_nats_tau_{bucket_name(i)}": v for i, v in enumerate(self.context_free)}
        return found


def bucket_name(index: int) -> str:
    return f"{index / BUCKETS:.1f}-{(index + 1) / BUCKETS:.1f}"
