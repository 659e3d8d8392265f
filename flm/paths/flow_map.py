"""Two-time algebra of the flow map (arXiv 2602.16813).

X_{s,t} takes the state at physical time s to the state at t:

    X_{s,t}(x) = (1-t)/(1-s) x + (t-s)/(1-s) delta_{s,t}(x).

The two-time denoiser delta_{s,t} is an average of points of the simplex along the trajectory, so it lies on the simplex too.
delta_{t,t} is the denoiser D_t. The jump is `gaussian.step` with delta as target. B batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from flm.draws import Draws
from flm.ranges import one_of


def semigroup_weight(s: Tensor, u: Tensor, t: Tensor) -> Tensor:
    """lam in delta_{s,t}(x) = lam delta_{s,u}(x) + (1 - lam) delta_{u,t}(X_{s,u} x), in [0, 1]; s <= u <= t, u < 1.

    lam = (1-t)(u-s) / ((1-u)(t-s)). At t = s every lam is right, and 0 is returned.
    """
    numerator = (1 - t) * (u - s)
    return torch.where(t > s, numerator / ((1 - u) * (t - s)).clamp_min(torch.finfo(t.dtype).tiny), torch.zeros_like(t))


@dataclass(frozen=True)
class TimePairs:
    """Start, midpoint and end of jumps on the clock, each (B,) in [0, 1], float64."""

    start: Tensor
    middle: Tensor
    end: Tensor


def uniform_gap(count: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Gap ~ U(0,1), start ~ U(0,1) (1 - gap), both stratified over the global batch."""
    gap = draws.points(count)
    start = draws.points(count) * (1 - gap)
    return start, start + gap


def uniform_pair(count: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Two uniform numbers in order, each stratified over the global batch."""
    ends = torch.stack([draws.points(count), draws.points(count)])
    return ends.amin(0), ends.amax(0)


# The laws that `algo.time_pairs` names. They give CPU tensors.
PAIR_LAWS: dict[str, Callable[[int, Draws], tuple[Tensor, Tensor]]] = {
    "uniform_gap": uniform_gap,
    "uniform_pair": uniform_pair,
}


PairLaw = Annotated[str, one_of(PAIR_LAWS)]


def draw_time_pairs(
    count: int, draws: Draws, law: str = "uniform_gap", boundary_prob: int | None = 32, random_middle: bool = False
) -> TimePairs:
    """Times of `count` jumps.

    Args:
        law: a key of PAIR_LAWS.
        boundary_prob: one jump in this many goes from 0 to 1, as one-step generation does; None: none does.
        random_middle: the midpoint is uniform between the ends, not halfway; both in clock time.
    """
    start, end = map(draws.moved, PAIR_LAWS[law](count, draws))
    if boundary_prob is not None:
        # stratified over the global batch; a batch smaller than boundary_prob has one only at some steps
        boundary = draws.stratified(count) < 1 / boundary_prob
        start, end = start.masked_fill(boundary, 0.0), end.masked_fill(boundary, 1.0)
    fraction = draws.stratified(count) if random_middle else 0.5
    return TimePairs(start, start + fraction * (end - start), end)
