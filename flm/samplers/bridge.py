"""The exact stochastic bridge of the Gaussian path as a sampler. B batch, L length."""

from typing import Any, Literal

import torch
from torch import Tensor

from flm.paths.gaussian import State, Table, embed
from flm.paths.renoising import bridge
from flm.posterior import TokenPosterior
from flm.ranges import Share
from flm.samplers.flow import Leg, StateSampler


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
