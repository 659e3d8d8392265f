"""Learning-rate schedules: factors of the base rate as functions of the optimiser step n = 0, 1, ...

All begin with a linear warm-up (n + 1) / warmup_steps, so no step has rate 0.
"""

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from flm.ranges import Count, Index, PositiveShare, Share


def warm_up(steps: Any, total_steps: Any) -> Any:
    """The warm-up steps of a recipe; if the run is no longer than these, a tenth of the run.

    Used in configs as `${warm_up:2500,${trainer.max_steps}}`. The values are checked later.
    """
    is_short = isinstance(steps, int) and isinstance(total_steps, int) and 0 < total_steps <= steps
    return total_steps // 10 if is_short else steps


def constant_warmup(optimizer: Optimizer, warmup_steps: Index) -> LambdaLR:
    """Linear warm-up, then constant."""
    return LambdaLR(optimizer, lambda n: _warmup(n, warmup_steps))


def cosine_decay(optimizer: Optimizer, warmup_steps: Index, total_steps: Count, final_factor: Share = 0.0) -> LambdaLR:
    """Linear warm-up, then half a cosine from 1 to final_factor at total_steps, then constant."""
    _check(warmup_steps, total_steps, total_steps - warmup_steps)

    def shape(progress: float) -> float:
        return (1 + math.cos(math.pi * progress)) / 2

    return _decay(optimizer, warmup_steps, total_steps, total_steps - warmup_steps, final_factor, shape)


def linear_warmdown(
    optimizer: Optimizer,
    warmup_steps: Index,
    total_steps: Count,
    warmdown_fraction: PositiveShare = 1.0,
    final_factor: Share = 0.0,
) -> LambdaLR:
    """Linear warm-up, then constant, then a linear decay to final_factor at total_steps.

    Args:
        warmdown_fraction: share of the steps after the warm-up that the decay takes, in (0, 1]; at least one step.
    """
    share = warmdown_fraction * (total_steps - warmup_steps)
    warmdown_steps = max(round(share), math.ceil(min(share, 1)))
    _check(warmup_steps, total_steps, warmdown_steps)
    return _decay(optimizer, warmup_steps, total_steps, warmdown_steps, final_factor, lambda progress: 1 - progress)


def _check(warmup_steps: int, total_steps: int, decay_steps: int) -> None:
    if decay_steps < 1 or warmup_steps + decay_steps > total_steps:
        raise ValueError(
            f"lr_scheduler: {warmup_steps} warm-up steps and {decay_steps} steps of decay do not fit into "
            f"total_steps={total_steps}: lower them or raise trainer.max_steps"
        )


def _decay(
    optimizer: Optimizer,
    warmup_steps: int,
    total_steps: int,
    decay_steps: int,
    final_factor: float,
    shape: Callable[[float], float],
) -> LambdaLR:
    def factor(n: int) -> float:
        progress = min(max((n - (total_steps - decay_steps)) / decay_steps, 0.0), 1.0)
        return _warmup(n, warmup_steps) * (final_factor + (1 - final_factor) * shape(progress))

    return LambdaLR(optimizer, factor)


def _warmup(n: int, warmup_steps: Index) -> float:
    return min(1.0, (n + 1) / max(1, warmup_steps))
