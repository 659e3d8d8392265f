"""Samplers that may add fresh noise in every step: a flow map with churn, and the exact bridge. B batch, L length."""

from typing import Any, Literal

import torch
from torch import Tensor

from flm.paths.gaussian import State, Table, embed
from flm.paths.renoising import bridge, kept_noise
from flm.posterior import TokenPosterior
from flm.ranges import Share
from flm.samplers.flow import Leg, StateSampler


class FlowMapSampler(StateSampler):
    """N jumps of a flow map on a grid uniform in tau; the arg-max of the last prediction is the sample.

    Each jump goes beyond the next grid time t', to the noise level sqrt(1 - gamma^2) sigma with sigma = 1 - t'. Fresh noise
    gamma sigma then raises the level to sigma (arXiv 2602.16813, churn sampler).

    Args:
        gamma: from 0, deterministic, to 1, where each step denoises fully and noises again, as in consistency sampling.
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


class BridgeSampler(StateSampler):
    """In each step, draws a token at every position, and the next state from the exact bridge to them (MCB, arXiv 2605.13681).

    The last tokens drawn are the sample. For one position it is exact in any number of steps. Several positions are drawn as
    if independent, an error that many steps make small. A flow map serves as its denoiser delta_{t,t}, since its other jumps
    do not predict a distribution of tokens.

    Args:
        endpoint: of a step: the drawn "token", or the prediction's "mean", with which the noise loses its distribution.
        gamma: standard deviation of fresh noise relative to that of all new noise, in [0, 1]: 0 keeps the noise, 1 draws it
            anew; None: that of the exact bridge, which depends on the step.
    """

    def __init__(self, endpoint: Literal["token", "mean"] = "token", gamma: Share | None = None, **policy: Any):
        super().__init__(**policy)
        self.draws, self.gamma = endpoint == "token", gamma

    def legs(self, clock: torch.nn.Module, steps: int, device: torch.device) -> list[Leg]:
        tau = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=device)
        times, taus = clock.time(tau).tolist(), tau.tolist()
        return [
            Leg(t, now, now, s, bridge(t, s) if self.gamma is None else self.gamma * (1 - s))
            for t, s, now in zip(times, times[1:], taus, strict=False)
        ]

    def endpoint(self, posterior: TokenPosterior, tables: tuple[Table, ...], generator: torch.Generator) -> State:
        return embed(posterior.draw(generator), tables) if self.draws else super().endpoint(posterior, tables, generator)

    def read(self, posterior: TokenPosterior, generator: torch.Generator) -> Tensor:
        return posterior.draw(generator) if self.draws else posterior.argmax()
