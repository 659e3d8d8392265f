"""Validation loss along the clock, beside that of the best decoder without context.

`Algorithm.validation_says` tells whether the mean bounds a likelihood. The cross-entropy of a denoiser, averaged over noise
levels, does not, and does not compare between algorithms or clocks. B batch, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flm.algos.algorithm import Loss

BUCKETS = 10
BUCKET_CENTRES = (torch.arange(BUCKETS, dtype=torch.float64) + 0.5) / BUCKETS


class Tally:
    """Sums losses and tokens by tenths of the clock; the last column is for sequences without a clock.

    Args:
        measure: name of the loss, with unit, `Algorithm.validation_metric`.
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
            context_free: (BUCKETS,) nats per token of the best decoder without context at BUCKET_CENTRES; None: no reference.
            reduce: adds a tensor up over all processes.

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
        measure: name of the loss, with unit.
        mean: over all tokens.
        by_tau: mean of each tenth of the clock; None for a tenth without sequences, and throughout without a clock.
        context_free: loss of the best decoder without context at the centre of each tenth; None: no reference.
        context_free_mean: its mean, with each tenth weighted as in `mean`.
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
        """Whether no tenth of the clock has a loss more than one percent below that without context."""
        reached = [] if self.context_free is None else list(zip(self.by_tau, self.context_free, strict=True))
        return bool(reached) and all(model is None or model > 0.99 * free for model, free in reached)

    def metrics(self) -> dict[str, float]:
        """The numbers to log, by name."""
        found = {f"val/{self.measure}_per_token": self.mean}
        found |= {f"val/{self.measure}_tau_{bucket_name(i)}": v for i, v in enumerate(self.by_tau) if v is not None}
        if self.context_free is not None and self.context_free_mean is not None:
            found["val/context_free_ce_nats_per_token"] = self.context_free_mean
            found |= {f"val/context_free_ce_nats_tau_{bucket_name(i)}": v for i, v in enumerate(self.context_free)}
        return found


def bucket_name(index: int) -> str:
    return f"{index / BUCKETS:.1f}-{(index + 1) / BUCKETS:.1f}"
