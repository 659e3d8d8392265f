"""Integrators of the flow from noise to tokens (FLM), on views of the state.

Every update is affine in the state and the predicted point of the simplex. A fixed position's prediction is its given
token, which keeps the position exactly on its own path (1 - t) noise + t onehot(token) at every step.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from flm.paths.gaussian import Noise, State, Table, combine, embed, expected, noise_for, step, where
from flm.posterior import TokenPosterior
from flm.ranges import NonNegative
from flm.samplers.canvas import Canvas
from flm.samplers.policy import Policy, Shaping


class FlowDenoiser(Protocol):
    """What flow samplers ask: the tables it reads, its clock, and a prediction.

    clock.time maps tau in [0, 1] to physical time and clock.tau back. One with an attribute `clean_given` that is true was
    trained with given tokens at t = 1 at all times, and samplers show it such; others see them on their path.
    """

    tables: tuple[Table, ...]
    clock: torch.nn.Module

    def __call__(self, state: State, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior: ...


@dataclass(frozen=True)
class Moment:
    """What a sampler shows after one network evaluation round: index in [0, steps), tau, and the prediction there."""

    index: int
    steps: int
    tau: float
    posterior: TokenPosterior
    canvas: Canvas

    def tokens(self) -> Tensor:
        """The most probable tokens (B, L), given ones in place."""
        return self.canvas.fill(self.posterior.argmax())


OnStep = Callable[[Moment], None] | None


def check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"sampling.steps must be at least 1, not {steps}")


def predicted_point(posterior: TokenPosterior, canvas: Canvas, tables: tuple[Table, ...], given: State | None = None) -> State:
    """Views of the predicted points of the simplex, with the given tokens at fixed positions.

    `given` is embed(canvas.tokens, tables) if that is at hand.
    """
    return where(canvas.editable, expected(posterior, tables), embed(canvas.tokens, tables) if given is None else given)


class StateSampler(Policy):
    """A sampler that carries a state from noise to tokens: draws the noise and leaves the way to `integrate`."""

    @torch.no_grad()
    def __call__(
        self,
        denoiser: FlowDenoiser,
        canvas: Canvas,
        steps: int,
        generator: torch.Generator,
        on_step: OnStep = None,
    ) -> Tensor:
        law = noise_for(denoiser.tables)
        start = law.sample(*canvas.tokens.shape, generator)
        return self.integrate(denoiser, canvas, steps, start, generator, on_step, law)

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
        """From a given noise state at t = 0 to tokens (B, L). `law` is that of the noise if it is at hand."""
        raise NotImplementedError


class FlowSampler(StateSampler):
    """Integrates dx/dt = (D_t(x) - x) / (1 - t) on a grid uniform in tau; the last step returns the prediction's arg-max.

    Args:
        solver: "euler" (N network evaluations in N steps) or "heun" (second order, 2N - 1 evaluations).
        churn: before each step but the first, raise the noise level sigma = (1 - t) / t by this fraction with fresh noise
            (Karras et al., arXiv 2206.00364, algorithm 2); 0 is deterministic.
        churn_noise: standard deviation of the fresh noise (S_noise there).
    """

    def __init__(
        self,
        solver: Literal["euler", "heun"] = "euler",
        churn: NonNegative = 0.0,
        churn_noise: NonNegative = 1.0,
        **policy: Any,
    ):
        super().__init__(**policy)
        self.second_order = solver == "heun"
        self.churn, self.churn_noise = churn, churn_noise

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
        if self.churn > 0 and steps > 1:
            fresh = noise_for(denoiser.tables) if law is None else law
        tau_grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=device)
        time_grid = denoiser.clock.time(tau_grid)
        times, taus = time_grid.tolist(), tau_grid.tolist()
        # where churn raises the noise to: sigma (1 + churn) at t = 1 / (1 + sigma)
        raised_grid = 1 / (1 + (1 + self.churn) * (1 - time_grid[1:-1]) / time_grid[1:-1])
        raised_times, raised_taus = raised_grid.tolist(), denoiser.clock.tau(raised_grid).tolist()
        given = embed(canvas.tokens, denoiser.tables)
        clean_given = getattr(denoiser, "clean_given", False)
        shaping = Shaping(self, canvas)

        def predict(state: State, tau: float) -> TokenPosterior:
            if clean_given:
                state = replace(where(canvas.editable, state, given), clean=~canvas.editable)
            clock = torch.full((batch,), tau, device=device, dtype=torch.float32)
            posterior = shaping(denoiser(state, clock), tau)
            shaping.guessed(posterior)
            return posterior

        for i in range(steps):
            t, t_next, tau = times[i], times[i + 1], taus[i]
            if fresh is not None and i > 0:
                sigma, t_raised = (1 - t) / t, raised_times[i - 1]
                spread = t_raised * self.churn_noise * sigma * ((1 + self.churn) ** 2 - 1) ** 0.5
                state = combine((t_raised / t, state), (spread, fresh.sample(batch, length, generator)))
                t, tau = t_raised, raised_taus[i - 1]
            posterior = predict(state, tau)
            if on_step is not None:
                on_step(Moment(i, steps, tau, posterior, canvas))
            if i == steps - 1:
                break
            point = predicted_point(posterior, canvas, denoiser.tables, given)
            moved = step(state, point, t, t_next)
            if self.second_order:
                # mean of the velocities at both ends: v = (D - x) / (1 - t)
                ahead = predicted_point(predict(moved, taus[i + 1]), canvas, denoiser.tables, given)
                half = (t_next - t) / 2
                a, b = half / (1 - t), half / (1 - t_next)
                state = combine((1 - a, state), (a, point), (b, ahead), (-b, moved))
            else:
                state = moved
        return canvas.fill(posterior.argmax())
