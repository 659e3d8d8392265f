"""Solvers of discrete flow matching (arXiv 2407.15595): each position jumps, independently, to a draw from the posterior.

A position that is noise, or any position if noise is not visible, jumps at the rate (1 + c) kappa' / (1 - kappa). Data turns to
noise again at the rate c kappa' / kappa. Here c(t) >= 0 is the strength of the corrector; for any c the share of data is kappa.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flm.paths.mixture import euler_jump_probability
from flm.ranges import NonNegative
from flm.samplers.masked import AncestralSampler, Step
from flm.samplers.masked_remasking import chosen, largest_sigma, writing_probability

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


class ExactJumps(AncestralSampler):
    """Jumps after which the share of data is exactly kappa, for steps of any size. Without corrector: the exact transition.

    A step from kappa to kappa' turns data to noise with probability r = 1 - (kappa / kappa')^c, as the second rate does with c
    averaged over log kappa; or with less, where the jumps could not make up for it.

    Args:
        corrector: strength of the corrector, c = corrector t^corrector_rise (1 - t)^corrector_fall; 0: none.
        corrector_rise: >= 0; above 0 it begins slowly, since there is little to correct at first.
        corrector_fall: >= 0; above 0 it fades out, since late corrections are hardly reconsidered.
    """

    def __init__(
        self,
        corrector: NonNegative = 0.0,
        corrector_rise: NonNegative = 0.0,
        corrector_fall: NonNegative = 0.0,
        **options: Any,
    ):
        super().__init__(**options)
        if not corrector and (corrector_rise or corrector_fall):
            raise ValueError("sampling.corrector_rise and corrector_fall shape sampling.corrector, which is 0: set it, too")
        self.corrector, self.rise, self.fall = corrector, corrector_rise, corrector_fall

    def strength(self, t: Any) -> Any:
        """c at times t, a number or a tensor."""
        return self.corrector * t**self.rise * (1 - t) ** self.fall

    def mean_strength(self, step: Step) -> float:
        """The mean of c over log kappa in a step with kappa > 0 at its start, by Gauss-Legendre quadrature."""
        if self.rise == self.fall == 0:
            return self.corrector
        log_kappa = math.log(step.kappa) + (torch.from_numpy(_NODES) + 1) / 2 * math.log(step.kappa_next / step.kappa)
        c = self.strength(step.schedule.inverse(log_kappa.exp()))
        return float(c @ torch.from_numpy(_WEIGHTS)) / 2

    def lost(self, step: Step) -> float:
        """The share of data that turns to noise; 1 at kappa = 0, where the rate is infinite and there is no data yet."""
        return 1 - (step.kappa / step.kappa_next) ** self.mean_strength(step) if step.kappa > 0 else 1.0

    def resampling(self, step: Step) -> float:
        """r; 0 in the last step."""
        if self.corrector == 0 or step.kappa_next == 1:
            return 0.0
        return min(self.lost(step), largest_sigma(step))

    def probability(self, step: Step) -> float:
        return writing_probability(step, self.resampling(step))

    def erased(self, step: Step, known: Tensor, generator: torch.Generator) -> Tensor | None:
        return None if self.corrector == 0 else chosen(known, self.resampling(step), generator)


class BlindExactJumps(ExactJumps):
    """The same if noise is not visible: all positions may jump, and those that do not may turn to noise."""

    def resampling(self, step: Step) -> float:
        if self.corrector == 0 or step.kappa_next == 1:
            return 0.0
        return self.lost(step)

    def probability(self, step: Step) -> float:
        kept = (1 - self.resampling(step)) * step.kappa
        return (step.kappa_next - kept) / (1 - kept)


class EulerJumps(ExactJumps):
    """Rates frozen at the start of a step. There are too few jumps, and the last step has to fill all that is left."""

    def resampling(self, step: Step) -> float:
        if self.corrector == 0 or step.kappa_next == 1:
            return 0.0
        if step.kappa == 0:
            return 1.0
        derivative = step.schedule.derivative(torch.tensor(step.t, dtype=torch.float64)).item()
        return -math.expm1(-(step.t_next - step.t) * self.strength(step.t) * derivative / step.kappa)

    def probability(self, step: Step) -> float:
        if step.kappa_next == 1:
            return 1.0
        t, t_next = (torch.tensor(x, dtype=torch.float64) for x in (step.t, step.t_next))
        # 1 + c times the rate over a step is the rate over a step 1 + c times as long
        return euler_jump_probability(step.schedule, t, t + (1 + self.strength(step.t)) * (t_next - t)).item()
