"""Three samplers along the KL geodesic from noise to tokens (KL-flow, arXiv 2411.16821): basic, sampling, hybrid.

basic integrates the flow dm/ds = p(token | x_t). It is deterministic given the noise, and exact in the limit of many steps.
sampling draws every token from the prediction and noises the tokens anew for the next time. It keeps no state, so it does not
hold V numbers a position, but it treats positions as independent. hybrid is basic up to `t_split`, then sampling.
B batch, L length, V vocabulary.
"""

import math
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from flm.draws import mix_seed
from flm.kl_flow.geodesic import Geodesic, GeodesicClock
from flm.kl_flow.geodesic_state import Carried, Logits, State, corrupt
from flm.posterior import TokenPosterior
from flm.ranges import NonNegative
from flm.samplers.canvas import Canvas
from flm.samplers.flow import Moment, OnStep, check_steps
from flm.samplers.policy import Policy, Shaping

Scheme = Literal["basic", "sampling", "hybrid"]
# Clock time at which hybrid changes over by default: the published t = 0.28 of [0, 0.3], as a share that fits any vocabulary.
SPLIT_TAU = 0.921


class GeodesicDenoiser(Protocol):
    """What the samplers call for predictions. tau_to is the next time of the sampler, for networks that predict a jump.

    Attributes:
        dtype: of states.
    """

    path: Geodesic
    clock: GeodesicClock
    dtype: torch.dtype

    def __call__(self, state: State, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior: ...


class GeodesicSampler(Policy):
    """N steps, even on the clock -log(1 - t), and one more network evaluation for the tokens at max_t.

    Given positions are clean one-hot vectors at every evaluation. All schemes and numbers of steps start from the same noise.

    Args:
        scheme: basic, sampling or hybrid.
        t_split: physical time at which hybrid changes from basic to sampling: 0 is sampling, max_t or more is basic; None:
            92.1% of the clock.
        solver: of the basic scheme: "exponential" is exact if the prediction is constant, "euler" is the published step in
            -log(1 - t).
        guess: tokens that the sampling scheme noises anew: "categorical", a draw from the prediction, or "argmax", as
            published, which lowers entropy.
        read_out: at max_t: "argmax", or "categorical", a draw.
    """

    def __init__(
        self,
        scheme: Scheme = "hybrid",
        t_split: NonNegative | None = None,
        solver: Literal["exponential", "euler"] = "exponential",
        guess: Literal["categorical", "argmax"] = "categorical",
        read_out: Literal["argmax", "categorical"] = "argmax",
        **policy: Any,
    ):
        super().__init__(**policy)
        if t_split is not None and scheme != "hybrid":
            raise ValueError(f"sampling.t_split is for sampling.scheme=hybrid, not {scheme}")
        if solver == "euler" and scheme == "sampling":
            raise ValueError("sampling.solver is for the basic scheme, which sampling.scheme=sampling does not use")
        if guess == "argmax" and scheme == "basic":
            raise ValueError("sampling.guess is for the sampling scheme, which sampling.scheme=basic does not use")
        self.scheme, self.t_split, self.euler = scheme, t_split, solver == "euler"
        self.guess, self.read_out = guess, read_out

    def basic_steps(self, times: list[float]) -> int:
        """The number of steps that integrate the flow, for a grid of N + 1 times; the others sample."""
        steps = len(times) - 1
        if self.scheme == "basic":
            return steps
        if self.scheme == "sampling":
            return 0
        if self.t_split is None:
            split = -math.expm1(SPLIT_TAU * math.log1p(-times[-1]))
        else:
            split = self.t_split
        return sum(t < split for t in times[:-1])

    def reread(
        self, denoiser: GeodesicDenoiser, canvas: Canvas, tokens: Tensor, tau: float, generator: torch.Generator
    ) -> tuple[TokenPosterior, Tensor]:
        """See `verified.Rereader`."""
        clock = torch.full((len(tokens),), tau, dtype=torch.float32, device=tokens.device)
        state = noised(canvas, tokens, denoiser.clock.time(clock[0].double()), denoiser, generator)
        return denoiser(state, clock, clock), canvas.editable

    @torch.no_grad()
    def __call__(
        self, denoiser: GeodesicDenoiser, canvas: Canvas, steps: int, generator: torch.Generator, on_step: OnStep = None
    ) -> Tensor:
        check_steps(steps)
        state = noised(canvas, canvas.tokens, torch.zeros(()), denoiser, generator)
        return self.integrate(denoiser, canvas, steps, state, generator, on_step)

    @torch.no_grad()
    def integrate(
        self,
        denoiser: GeodesicDenoiser,
        canvas: Canvas,
        steps: int,
        state: State,
        generator: torch.Generator,
        on_step: OnStep = None,
    ) -> Tensor:
        """Tokens (B, L) from a given noise state at t = 0."""
        check_steps(steps)
        device, batch = canvas.tokens.device, len(canvas.tokens)
        tau = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=device)
        grid = denoiser.clock.time(tau)
        times, taus = grid.tolist(), tau.tolist()
        basic, by_state = self.basic_steps(times), self.read_out == "state"

        shaping = Shaping(self, canvas)

        def predict(state: State, k: int, to: int) -> TokenPosterior:
            clocks = (torch.full((batch,), taus[i], device=device, dtype=torch.float32) for i in (k, to))
            posterior = shaping(denoiser(state, *clocks), taus[k])
            shaping.guessed(posterior)
            if on_step is not None:
                on_step(Moment(k, steps + (not by_state), taus[k], posterior, canvas))
            return posterior

        for k in range(steps):
            if k < basic:
                keep, gain = self._step(denoiser.path, times[k], times[k + 1])
                state = moved(state, predict(state, k, k + 1), gain, keep, grid[k + 1], denoiser)
                continue
            to_end = denoiser.path.signal(times[-1]) - denoiser.path.signal(times[k])
            guess = self._guess(state, predict(state, k, steps), to_end, generator)
            if by_state and k == steps - 1:
                return canvas.fill(guess)
            state = noised(canvas, guess, grid[k + 1], denoiser, generator)
        if by_state:
            return canvas.fill(most_probable(state.logits, canvas.tokens.shape))
        return canvas.fill(self._read(predict(state, steps, steps), generator))

    def _guess(self, state: State, posterior: TokenPosterior, to_end: float, generator: torch.Generator) -> Tensor:
        """Clean tokens (B, L) from the prediction at a state; to_end is the signal from there to the end."""
        return posterior.argmax() if self.guess == "argmax" else posterior.draw(generator)

    def _step(self, path: Geodesic, t: float, t_next: float) -> tuple[float, float]:
        """(keep, gain) of m <- keep * m + gain * p."""
        if not self.euler:
            return 1.0, path.signal(t_next) - path.signal(t)
        # l <- (1 - h) l + h c p with h the step in -log(1 - t), and m = l / (1 - t)
        ratio = (1 - t) / (1 - t_next)
        h = math.log(ratio)
        return (1 - h) * ratio, h * path.gap / (1 - t_next)

    def _read(self, posterior: TokenPosterior, generator: torch.Generator) -> Tensor:
        if self.read_out == "categorical":
            return posterior.draw(generator)
        return posterior.argmax()


def noised(canvas: Canvas, tokens: Tensor, t: Tensor, denoiser: GeodesicDenoiser, generator: torch.Generator) -> State:
    """Tokens (B, L) with fresh noise at time t (a scalar tensor); given ones are clean."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device).item())
    seeds = [mix_seed(seed, row) for row in range(len(tokens))]
    times = t.double().to(tokens.device).expand(len(tokens))
    return corrupt(canvas.fill(tokens), times, denoiser.path, seeds, ~canvas.editable, denoiser.dtype)


def moved(state: State, posterior: TokenPosterior, gain: float, keep: float, t: Tensor, denoiser: GeodesicDenoiser) -> State:
    """The state at time t (a scalar tensor); its logits change in place if they are `Carried`."""
    logits = state.logits
    if not isinstance(logits, Carried):
        count = state.tokens.numel()
        logits = Carried(logits, count, denoiser.path.vocab_size, state.tokens.device, denoiser.dtype)
    logits.move(posterior, gain, keep)
    return state.at(logits, t.expand(len(state.tokens)))


def most_probable(logits: Logits, shape: torch.Size) -> Tensor:
    """The arg-max (B, L) of the state's own logits."""
    return torch.cat([m.argmax(-1) for _, m in logits.chunks()]).view(shape)
