"""Samplers that may add fresh noise on the way: a flow map's churn, and the exact bridge. B batch, L length."""

from typing import Any, Literal

import torch
from torch import Tensor

from flm.paths.gaussian import State, Table, embed
from flm.paths.renoising import bridge, kept_noise
from flm.posterior import TokenPosterior
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


class BridgeSampler(StateSampler):
    """Draws a token a position from the prediction, and the next state from the noise's exact bridge to them (MCB, arXiv
    2605.13681); the last tokens drawn are the sample. For one position it is exact in any number of steps; positions are
    drawn as if independent, which many steps mend and few do not.

    A flow map is asked for its denoiser, delta_{t,t}: other jumps are no distribution of tokens.

    Args:
        endpoint: where a step leads, "token" or, with which the noise loses its law, the prediction's "mean".
        gamma: share in [0, 1] of the new noise's deviation that is fresh: 0 keeps the noise, 1 draws it anew; None: the exact
            bridge's, which depends on the step.
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
