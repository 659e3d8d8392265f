"""Solvers of discrete flow matching (arXiv 2407.15595): positions jump to draws from the posterior, one by one.

Each position jumps at the rate (1 + c) kappa' / (1 - kappa), if it is noise or noise cannot be told, and turns to noise again
at the rate c kappa' / kappa, c(t) >= 0 the strength of the corrector: whatever c, the share of data follows kappa.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flm.paths.mixture import euler_jump_probability
from flm.ranges import NonNegative
from flm.samplers.masked import AncestralSampler, Step
from flm.samplers.masked_remasking import largest_sigma

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


class ExactJumps(AncestralSampler):
    """After every step of any size the share of data is kappa exactly; without a corrector, the path's own transition.

    A step turns what was data to noise with probability r = 1 - (kappa / kappa')^c, that of the second rate (c its mean over
    log kappa), or less where the share could not be held, and the probability of a jump makes up for it.

    Args:
        corrector: how much of what is written turns to noise and is drawn again: c = corrector t^rise (1 - t)^fall; 0: nothing.
        corrector_rise: a, from 0: the corrector begins slowly, since in the beginning little is there to correct.
        corrector_fall: b, from 0: it fades towards the end, where what is corrected is hardly reconsidered.
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
        """c at times t."""
        return self.corrector * t**self.rise * (1 - t) ** self.fall

    def mean_strength(self, step: Step) -> float:
        """c over a step that begins with some data, evenly in log kappa."""
        if self.rise == self.fall == 0:
            return self.corrector
        log_kappa = math.log(step.kappa) + (torch.from_numpy(_NODES) + 1) / 2 * math.log(step.kappa_next / step.kappa)
        c = self.strength(step.schedule.inverse(log_kappa.exp()))
        return float(c @ torch.from_numpy(_WEIGHTS)) / 2

    def lost(self, step: Step) -> float:
        """The share of data that turns to noise; 1 at t = 0, where the rate is infinite and there is no data yet."""
        return 1 - (step.kappa / step.kappa_next) ** self.mean_strength(step) if step.kappa > 0 else 1.0

    def resampling(self, step: Step) -> float:
        """r; 0 in the last step."""
        if self.corrector == 0 or step.kappa_next == 1:
            return 0.0
        return min(self.lost(step), largest_sigma(step))

    def probability(self, step: Step) -> float:
        return (step.kappa_next - (1 - self.resampling(step)) * step.kappa) / (1 - step.kappa)

    def erased(self, step: Step, known: Tensor, generator: torch.Generator) -> Tensor | None:
        if self.corrector == 0:
            return None
        u = torch.rand(known.shape, generator=generator, dtype=torch.float64, device=known.device)
        return known & (u < self.resampling(step))


class BlindExactJumps(ExactJumps):
    """The same where noise cannot be told from data: all positions may jump, and those that do not may turn to noise."""

    def resampling(self, step: Step) -> float:
        if self.corrector == 0 or step.kappa_next == 1:
            return 0.0
        return self.lost(step)

    def probability(self, step: Step) -> float:
        kept = (1 - self.resampling(step)) * step.kappa
        return (step.kappa_next - kept) / (1 - kept)


class EulerJumps(ExactJumps):
    """Rates frozen at the start of a step: too few jumps, and what is left is decided in the last step at once."""

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
        # (1 + c) rates over the step are the rate over 1 + c such steps
        return euler_jump_probability(step.schedule, t, t + (1 + self.strength(step.t)) * (t_next - t)).item()
