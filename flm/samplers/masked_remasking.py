"""Masked diffusion that masks written tokens again (ReMDM, arXiv 2503.00307).

In a step from kappa to kappa' each written token is masked again with probability sigma, and each mask is written with
probability

    (kappa' - (1 - sigma) kappa) / (1 - kappa),

so that after it a position is known with probability kappa', for any sigma. No token is final before the last step, so more
steps can go on improving a text. sigma is at most min(1, (1 - kappa') / kappa), which is 0 in the last step.
"""

from typing import Any

import torch
from torch import Tensor

from flm.paths.mixture import Schedule
from flm.ranges import Share
from flm.samplers.masked import AncestralSampler, Step


def largest_sigma(step: Step) -> float:
    """The largest sigma for which masks can make up for what is masked again."""
    return min(1.0, (1 - step.kappa_next) / step.kappa) if step.kappa > 0 else 1.0


def writing_probability(step: Step, sigma: float) -> float:
    """The probability with which each mask is written, see the module."""
    return (step.kappa_next - (1 - sigma) * step.kappa) / (1 - step.kappa)


def chosen(positions: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Each of the positions (B, L) bool with this probability, independently."""
    u = torch.rand(positions.shape, generator=generator, dtype=torch.float64, device=positions.device)
    return positions & (u < probability)


class RemaskingSampler(AncestralSampler):
    """sigma = min(remasking, its largest value), "cap" in the paper.

    Args:
        remasking: probability that a written token is masked again in a step; 0 is ancestral sampling.
    """

    def __init__(self, remasking: Share = 0.02, **options: Any):
        super().__init__(**options)
        self.remasking = remasking

    def sigma(self, step: Step) -> float:
        return min(self.remasking, largest_sigma(step))

    def probability(self, step: Step) -> float:
        return writing_probability(step, self.sigma(step))

    def erased(self, step: Step, known: Tensor, generator: torch.Generator) -> Tensor | None:
        return chosen(known, self.sigma(step), generator)


class RescaledRemaskingSampler(RemaskingSampler):
    """sigma = remasking * its largest value, "rescale" in the paper."""

    def sigma(self, step: Step) -> float:
        return self.remasking * largest_sigma(step)


class LoopingSampler(RemaskingSampler):
    """Fills most positions, then masks and writes again at a constant share of known ones, then fills the rest; "loop".

    The share of known positions is LOOP_SHARE between the fractions LOOP_START and LOOP_END of the steps. It grows linearly
    before and after, where nothing is masked again.
    """

    LOOP_START, LOOP_END, LOOP_SHARE = 0.45, 0.95, 0.9

    def kappas(self, schedule: Schedule, steps: int) -> Tensor:
        share = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        before = (self.LOOP_SHARE * share / self.LOOP_START).clamp(max=self.LOOP_SHARE)
        after = 1 - (1 - self.LOOP_SHARE) * (1 - share) / (1 - self.LOOP_END)
        return torch.where(share < self.LOOP_END, before, after)

    def sigma(self, step: Step) -> float:
        return super().sigma(step) if step.kappa_next == step.kappa else 0.0
