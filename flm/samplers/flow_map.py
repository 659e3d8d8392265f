"""Sampling with a flow map: jumps along the clock, optionally with fresh noise in between (churn)."""

from typing import Any

import torch

from flm.paths.renoising import kept_noise
from flm.ranges import Share
from flm.samplers.flow import Leg, StateSampler


class FlowMapSampler(StateSampler):
    """N jumps on a grid uniform in tau; the last one's point of the simplex gives the tokens by arg-max.

    Each jump aims beyond the next grid point, at noise level sigma~ = sqrt(1 - gamma^2) sigma, and fresh noise gamma sigma
    brings the level back to sigma = 1 - t' (arXiv 2602.16813, churn sampler).

    Args:
        gamma: 0 deterministic ... 1 denoise fully and noise again, as in consistency sampling.
    """

    def __init__(self, gamma: Share = 0.0, **policy: Any):
        super().__init__(**policy)
        self.gamma = gamma

    def legs(self, clock: torch.nn.Module, steps: int, device: torch.device) -> list[Leg]:
        tau = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=device)
        times, taus = clock.time(tau).tolist(), tau.tolist()
        zetas = [self.gamma * (1 - s) for s in times]
        aims = [1 - kept_noise(s, zeta) for s, zeta in zip(times, zetas, strict=True)]
        aimed = clock.tau(tau.new_tensor(aims)).tolist() if self.gamma > 0 else taus
        return [Leg(times[i], taus[i], aimed[i + 1], times[i + 1], zetas[i + 1]) for i in range(steps)]
