"""Masked diffusion that takes back what it wrote (ReMDM, arXiv 2503.00307).

In a step from kappa to kappa' each written token is masked again with probability sigma, and each mask is written with

    (kappa' - (1 - sigma) kappa) / (1 - kappa),

so that a position is known with probability kappa' after it, whatever sigma: no token need be final before the last step,
and more steps go on improving a text. sigma may be at most min(1, (1 - kappa') / kappa), which is 0 in the last step.
"""

from typing import Any

import torch
from torch import Tensor

from flm.paths.mixture import Schedule
from flm.ranges import Share
from flm.samplers.masked import AncestralSampler, Step


def largest_sigma(step: Step) -> float:
    return min(1.0, (1 - step.kappa_next) / step.kappa) if step.kappa > 0 else 1.0


class RemaskingSampler(AncestralSampler):
    """sigma = min(remasking, its largest value): "cap" in the paper.

    Args:
        remasking: probability that what is written is masked again in a step; 0 is ancestral sampling.
    """

    def __init__(self, remasking: Share = 0.02, **options: Any):
        super().__init__(**options)
        self.remasking = remasking

    def sigma(self, step: Step) -> float:
        return min(self.remasking, largest_sigma(step))

    def probability(self, step: Step) -> float:
        return (step.kappa_next - (1 - self.sigma(step)) * step.kappa) / (1 - step.kappa)

    def erased(self, step: Step, known: Tensor, generator: torch.Generator) -> Tensor | None:
        u = torch.rand(known.shape, generator=generator, dtype=torch.float64, device=known.device)
        return known & (u < self.sigma(step))


class RescaledRemaskingSampler(RemaskingSampler):
    """sigma = remasking * its largest value: "rescale" in the paper."""

    def sigma(self, step: Step) -> float:
        return self.remasking * largest_sigma(step)


class LoopingSampler(RemaskingSampler):
    """Fills most positions, then masks and writes again for a while with as many known, then fills the rest: "loop".

    The share of known positions is LOOP_SHARE in the middle part of the steps, from LOOP_START to LOOP_END of them, and
    changes linearly before and after it, where nothing is masked again.
    """

    LOOP_START, LOOP_END, LOOP_SHARE = 0.45, 0.95, 0.9

    def kappas(self, schedule: Schedule, steps: int) -> Tensor:
        share = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        before = (self.LOOP_SHARE * share / self.LOOP_START).clamp(max=self.LOOP_SHARE)
        after = 1 - (1 - self.LOOP_SHARE) * (1 - share) / (1 - self.LOOP_END)
        return torch.where(share < self.LOOP_END, before, after)

    def sigma(self, step: Step) -> float:
        return super().sigma(step) if step.kappa_next == step.kappa else 0.0
