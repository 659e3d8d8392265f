"""A distribution of training times that adapts to the loss: dense where the cross-entropy falls fast (arXiv 2609.35553, J.1).

H(tau), the mean cross-entropy at a clock time, falls from noise to data; -dH/dtau shows where tokens become known. Times are
drawn with this density, mixed with the uniform one, so that every nat to be learned gets equally many draws. The network is
still conditioned on the clock's time, so it need not adapt when the distribution does.

H is estimated in bins from the training losses, without further evaluations. Noise would make slopes where there are none, so
the bins are made monotone by isotonic regression; the paper leaves rising pairs out instead. B batch, K bins.
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from flm.algos.algorithm import over
from flm.paths.clock import TimeLaw
from flm.ranges import Count, Index, OpenShare


class AdaptiveTimeLaw(TimeLaw):
    """The adaptive distribution.

    The sums behind it are over all processes and micro-batches and are saved with the weights, so that it depends neither on
    how a batch is cut nor on a resume.

    Args:
        bins: K, of equal width on the clock.
        every: optimiser steps between estimates of the density.
        start: steps with uniform times before the first estimate.
        memory: factor of the bins' sums at each estimate.
        uniform_share: weight of the uniform density, so that every time gets draws.
    """

    def __init__(
        self,
        bins: Annotated[int, Ge(2)] = 50,
        every: Count = 50,
        start: Index = 1000,
        memory: OpenShare = 0.9,
        uniform_share: OpenShare = 0.1,
    ):
        super().__init__()
        self.every, self.start, self.memory, self.uniform_share = every, start, memory, uniform_share
        self.register_buffer("sums", torch.zeros(2, bins, dtype=torch.float64))  # nats, tokens
        self.register_buffer("knots", uniform_knots(bins))
        self.register_buffer("estimates", torch.zeros((), dtype=torch.int64))

    def forward(self, u: Tensor, step: int) -> Tensor:
        due = max(0, (step - self.start) // self.every + 1)
        late = self.estimates < due  # compared on the device, without waiting for it
        stale = late & (self.sums[1] > 0).all()  # only the first call of a step estimates, before the bins change
        self.knots.copy_(torch.where(stale, self._mixed(density_knots(*self.sums)), self.knots))
        self.sums.mul_(torch.where(stale, self.memory, 1.0))
        self.estimates.copy_(torch.where(late, due, self.estimates))
        return inverse(self.knots, u.to(self.knots.dtype)).to(u.dtype)

    @torch.no_grad()
    def learn(self, tau: Tensor, nats: Tensor, counts: Tensor) -> None:
        bins = self.sums.shape[1]
        where = (tau.double() * bins).long().clamp(0, bins - 1)
        values = torch.stack([torch.where(counts > 0, nats, 0.0), counts]).to(self.sums)
        inside = where[:, None] == torch.arange(bins, device=where.device)
        found = values @ inside.to(values)  # index_add would not be deterministic on CUDA
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(found)
        self.sums.add_(found)

    def _mixed(self, knots: Tensor) -> Tensor:
        return torch.lerp(knots, uniform_knots(self.sums.shape[1], knots.device), self.uniform_share)


def uniform_knots(bins: int, device: torch.device | str = "cpu") -> Tensor:
    """Clock times (K + 2,) float64 of the knots of a distribution function: the ends and the centres of the bins."""
    knots = torch.arange(-0.5, bins + 1, dtype=torch.float64, device=device) / bins
    return knots.clamp(0, 1)


def density_knots(nats: Tensor, counts: Tensor) -> Tensor:
    """The values (K + 2,) at the knots of the distribution function whose density is the slope of the falling mean.

    It is linear between knots. Outside of the first and last centre the slope is that next to them. If the mean falls nowhere,
    the distribution is uniform.
    """
    mean = falling(nats, counts)
    drop = mean[:-1] - mean[1:]
    drops = torch.cat([drop[:1] / 2, drop, drop[-1:] / 2])
    total = drops.sum()
    flat = uniform_knots(len(nats), mean.device)
    knots = torch.cat([flat[:1], (drops / torch.where(total > 0, total, 1.0)).cumsum(0)])
    knots = knots / torch.where(total > 0, knots[-1], 1.0)  # 1 at the end, to the last digit
    return torch.where(total > 0, knots, flat)


def falling(nats: Tensor, counts: Tensor) -> Tensor:
    """Isotonic regression: the non-increasing means (K,) nearest to nats / counts in squares weighted by counts.

    Each is the minimum, over the starts of blocks that hold the bin, of the maximum over their ends of the block's mean.
    """
    sums, sizes = (torch.cat([x.new_zeros(1), x.cumsum(0)]) for x in (nats, counts))
    block = (sums[None, 1:] - sums[:-1, None]) / over(sizes[None, 1:] - sizes[:-1, None])  # from bin i to bin j
    inside = torch.ones_like(block).triu().bool()
    best = block.masked_fill(~inside, -torch.inf).flip(1).cummax(1).values.flip(1)  # over ends j >= k
    return best.masked_fill(~inside, torch.inf).cummin(0).values.diagonal()


def inverse(knots: Tensor, u: Tensor) -> Tensor:
    """Clock times (B,) at which the distribution function with these values at its knots equals u (B,)."""
    cell = (torch.searchsorted(knots, u, right=True) - 1).clamp(0, len(knots) - 2)
    times = uniform_knots(len(knots) - 2, knots.device)
    low, high = knots[cell], knots[cell + 1]
    share = ((u - low) / over(high - low)).clamp(0, 1)
    return times[cell] + share * (times[cell + 1] - times[cell])
