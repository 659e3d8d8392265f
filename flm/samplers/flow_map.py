"""Sampling with a flow map: jumps along the clock, optionally with fresh noise in between (churn)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flm.paths.gaussian import Noise, State, combine, embed, noise_for, step, where
from flm.ranges import Share
from flm.samplers.canvas import Canvas
from flm.samplers.flow import FlowDenoiser, Moment, OnStep, StateSampler, check_steps, predicted_point
from flm.samplers.policy import Shaping


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

    @torch.no_grad()
    def integrate(
        self,
        denoiser: FlowDenoiser,
        canvas: Canvas,
        steps: int,
        state: State,
        generator: torch.Generator,
        on_step: OnStep = None,
        law: Noise | None = None,
    ) -> Tensor:
        check_steps(steps)
        batch, length = canvas.tokens.shape
        device = canvas.tokens.device
        fresh = None
        if self.gamma > 0 and steps > 1:
            fresh = noise_for(denoiser.tables) if law is None else law
        given, clean_given = embed(canvas.tokens, denoiser.tables), getattr(denoiser, "clean_given", False)
        tau = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=device)
        sigma = 1 - denoiser.clock.time(tau)
        aim = 1 - sigma * (1 - self.gamma**2) ** 0.5
        taus, sigmas, aims = tau.tolist(), sigma.tolist(), aim.tolist()
        aim_taus = (denoiser.clock.tau(aim) if self.gamma > 0 else tau).tolist()

        def clock(value: float) -> Tensor:
            return torch.full((batch,), value, device=device, dtype=torch.float32)

        shaping, output = Shaping(self, canvas), None
        for i in range(steps):
            seen = replace(where(canvas.editable, state, given), clean=~canvas.editable) if clean_given else state
            output = shaping(denoiser(seen, clock(taus[i]), clock(aim_taus[i + 1])), taus[i])
            shaping.guessed(output)
            if on_step is not None:
                on_step(Moment(i, steps, taus[i], output, canvas))
            if i == steps - 1:
                break
            point = predicted_point(output, canvas, denoiser.tables, given)
            landed = step(state, point, 1 - sigmas[i], aims[i + 1])
            if fresh is None:
                state = landed
            else:
                # (1 - t~) x0 + t~ d  ->  (1 - t') of noise: what is taken from the mean goes to d
                lowered = 1 - aims[i + 1] - sigmas[i + 1]
                noise = fresh.sample(batch, length, generator)
                state = combine((1.0, landed), (lowered, point), (self.gamma * sigmas[i + 1], noise))
        return canvas.fill(output.argmax())
