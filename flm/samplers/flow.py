"""Samplers of the flow from noise to tokens (FLM), on views of the state.

Every update is affine in the state and the predicted point of the simplex (`flm.paths.renoising`). At a given position the
token replaces the prediction, which keeps the position exactly on its path (1 - t) noise + t onehot(token).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from flm.paths.gaussian import Given, Noise, State, Table, combine, corrupt, embed, expected, noise_for, step, where
from flm.paths.renoising import churned, renoised
from flm.posterior import TokenPosterior
from flm.ranges import NonNegative
from flm.samplers.canvas import Canvas
from flm.samplers.policy import Policy, Shaping


class FlowDenoiser(Protocol):
    """What flow samplers call for predictions.

    If it has an attribute `clean_given` that is true, it was trained to read given tokens without noise at all times, and
    samplers show them so. Otherwise given tokens are on their noised path.

    Attributes:
        tables: through which it reads the state.
        clock: `clock.time` maps tau in [0, 1] to physical time, `clock.tau` back.
    """

    tables: tuple[Table, ...]
    clock: torch.nn.Module

    def __call__(self, state: State, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior: ...


@dataclass(frozen=True)
class Moment:
    """What a sampler shows after each step: index in [0, steps), tau, and the prediction there."""

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


@dataclass(frozen=True)
class Leg:
    """One step of a sampler of the Gaussian path (see `renoised`).

    Attributes:
        t, tau: physical and clock time of the state.
        tau_to: clock time of the end of a flow map's jump; a denoiser ignores it.
        s: physical time of the next state.
        zeta: standard deviation of its fresh noise.
        halfway: (t, tau) of the second evaluation of Heun's method; None: there is none.
        noise_scale: multiplies the fresh noise; 1 keeps the path's distribution.
    """

    t: float
    tau: float
    tau_to: float
    s: float
    zeta: float = 0.0
    halfway: tuple[float, float] | None = None
    noise_scale: float = 1.0


class StateSampler(Policy):
    """Base of samplers that carry a state from noise to tokens in `legs`, which subclasses define."""

    def legs(self, clock: torch.nn.Module, steps: int, device: torch.device) -> list[Leg]:
        """One for each step; the end of the last is not read."""
        raise NotImplementedError

    def endpoint(self, posterior: TokenPosterior, tables: tuple[Table, ...], generator: torch.Generator) -> State:
        """The views of the endpoint e of a step: the prediction's mean, unless overridden."""
        return expected(posterior, tables)

    def read(self, posterior: TokenPosterior, generator: torch.Generator) -> Tensor:
        """Tokens (B, L) of the last prediction."""
        return posterior.argmax()

    def reread(
        self, denoiser: FlowDenoiser, canvas: Canvas, tokens: Tensor, tau: float, generator: torch.Generator
    ) -> tuple[TokenPosterior, Tensor]:
        """See `verified.Rereader`."""
        clock = torch.full((len(tokens),), tau, dtype=torch.float32, device=tokens.device)
        state = corrupt(tokens, denoiser.clock.time(clock.double()).float(), denoiser.tables, generator)
        seen = Given(tokens, ~canvas.editable, getattr(denoiser, "clean_given", False)).seen(state, denoiser.tables)
        return denoiser(seen, clock, clock), canvas.editable

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
        """Tokens (B, L) from a given noise state at t = 0. `law`: noise_for(tables) if already made; None: it is made."""
        check_steps(steps)
        device, tables = canvas.tokens.device, denoiser.tables
        legs = self.legs(denoiser.clock, steps, device)
        if law is None and any(leg.zeta > 0 for leg in legs[:-1]):
            law = noise_for(tables)
        given, clean_given = embed(canvas.tokens, tables), getattr(denoiser, "clean_given", False)
        shaping = Shaping(self, canvas)

        def predict(state: State, *taus: float) -> TokenPosterior:
            if clean_given:
                state = replace(where(canvas.editable, state, given), clean=~canvas.editable)
            clocks = (torch.full((len(canvas.tokens),), tau, device=device, dtype=torch.float32) for tau in taus)
            posterior = shaping(denoiser(state, *clocks), taus[0])
            shaping.guessed(posterior)
            return posterior

        def endpoint(posterior: TokenPosterior) -> State:
            return where(canvas.editable, self.endpoint(posterior, tables, generator), given)

        for i, leg in enumerate(legs):
            posterior = predict(state, leg.tau, leg.tau_to)
            if on_step is not None:
                on_step(Moment(i, steps, leg.tau, posterior, canvas))
            if i == steps - 1:
                break
            end = endpoint(posterior)
            if leg.halfway is not None:
                # the endpoint that corresponds to the mean of the velocities (D - x) / (1 - t) at both ends
                time, tau = leg.halfway
                ahead = predict(step(state, end, leg.t, time), tau, tau)
                share = (1 - leg.t) / (1 - time) / 2
                end = combine((1 - share, end), (share, endpoint(ahead)))
            noise = None
            if leg.zeta > 0:
                noise = law.sample(*canvas.tokens.shape, generator)
                noise = noise if leg.noise_scale == 1 else combine((leg.noise_scale, noise))
            state = renoised(state, end, leg.t, leg.s, leg.zeta, noise)
        return canvas.fill(self.read(posterior, generator))


class FlowSampler(StateSampler):
    """Integrates dx/dt = (D_t(x) - x) / (1 - t) on a grid uniform in tau; the arg-max of the last prediction is the sample.

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

    def legs(self, clock: torch.nn.Module, steps: int, device: torch.device) -> list[Leg]:
        """Each leg goes from a raised noise level to a time of the grid, where the level is raised again."""
        tau = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=device)
        t = clock.time(tau)
        raised, raised_tau = t.clone(), tau.clone()
        if self.churn > 0 and steps > 1:
            raised[1:-1] = 1 / (1 + (1 + self.churn) * (1 - t[1:-1]) / t[1:-1])
            raised_tau[1:-1] = clock.tau(raised[1:-1])
        grid, gamma = list(zip(raised.tolist(), raised_tau.tolist(), strict=True)), churned(self.churn)
        down = list(zip(t.tolist(), tau.tolist(), strict=True)) if self.second_order else [None] * (steps + 1)
        return [
            Leg(*grid[i], grid[i][1], s, gamma * (1 - s), down[i + 1], self.churn_noise) for i, (s, _) in enumerate(grid[1:])
        ]
