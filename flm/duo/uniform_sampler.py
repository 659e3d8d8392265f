"""Sampling from uniform-state diffusion, where any token may be replaced at any step (UDLM, arXiv 2412.10193; Duo, 2506.10892).

B batch, L length, V vocabulary.
"""

from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from flm.paths.mixture import Schedule, UniformSource, corrupt, mix
from flm.posterior import TokenPosterior, draw_from, softmax64
from flm.ranges import Share
from flm.samplers.canvas import Canvas
from flm.samplers.flow import Moment, OnStep, check_steps
from flm.samplers.policy import Policy, Shaping


class UniformDenoiser(Protocol):
    """What these samplers ask: the source, the schedule they follow, and a prediction.

    Called with tokens (B, L) and t (B,); gives the posterior (B, L) of each token given the rest of the state, as training
    with the variational bound does. What the position's own token says is then added by the reverse process.
    """

    source: UniformSource
    schedule: Schedule

    def __call__(self, tokens: Tensor, t: Tensor) -> TokenPosterior: ...


class UniformSampler(Policy):
    """Ancestral sampling: N draws from the reverse posterior on a grid uniform in t, in N network evaluations.

    Args:
        noise_removal: the last step, "ancestral" (a draw like the others) or "greedy" (the arg-max of the prediction: Duo's
            greedy tail, less diverse).
    """

    def __init__(self, noise_removal: Literal["ancestral", "greedy"] = "ancestral", **policy: Any):
        super().__init__(**policy)
        self.greedy = noise_removal == "greedy"

    @torch.no_grad()
    def __call__(
        self, denoiser: UniformDenoiser, canvas: Canvas, steps: int, generator: torch.Generator, on_step: OnStep = None
    ) -> Tensor:
        check_steps(steps)
        source, times = denoiser.source, torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        kappas, times = denoiser.schedule.kappa(times).tolist(), times.tolist()
        tokens, shaping = canvas.fill(source.sample(canvas.tokens, generator)), Shaping(self, canvas)
        for i in range(steps):
            t = torch.full((len(tokens),), times[i], dtype=torch.float32, device=tokens.device)
            shaping.stands(tokens)
            posterior = shaping(denoiser(tokens, t), times[i])
            if on_step is not None:
                on_step(Moment(i, steps, times[i], posterior, canvas))
            if self.greedy and i == steps - 1:
                return canvas.fill(posterior.argmax())
            clean, own = self._draw(posterior, tokens, generator)
            proposed = source.step(tokens, clean, kappas[i], kappas[i + 1], generator, own)
            share = self.corrected_share(kappas[i], kappas[i + 1])
            if share > 0:
                # the same prediction carried to the data, and noised again from there
                guess = source.step(tokens, clean, kappas[i], 1.0, generator, own)
                proposed = mix(proposed, corrupt(guess, kappas[i + 1], source, generator), share, generator)
            tokens = canvas.fill(proposed)
        return tokens

    def reread(
        self, denoiser: UniformDenoiser, canvas: Canvas, tokens: Tensor, tau: float, generator: torch.Generator
    ) -> tuple[TokenPosterior, Tensor]:
        """As `verified.Rereader` says."""
        kappa = denoiser.schedule.kappa(torch.tensor(tau, dtype=torch.float64)).item()
        state = canvas.fill(corrupt(tokens, kappa, denoiser.source, generator))
        return denoiser(state, torch.full((len(tokens),), tau, device=tokens.device)), canvas.editable

    def corrected_share(self, kappa: float, kappa_next: float) -> float:
        """Share in [0, 1] of the positions that are noised anew rather than led on, in a step from kappa to kappa_next."""
        return 0.0

    def _draw(self, posterior: TokenPosterior, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) drawn from the prediction, and the probability it gives to those at hand, float64."""
        now, drawn, own = tokens.reshape(-1), [], []
        for part, logits in posterior.logit_chunks():
            p = softmax64(logits)
            drawn.append(draw_from(p, generator))
            own.append(p.gather(1, now[part, None])[:, 0])
        return torch.cat(drawn).view_as(tokens), torch.cat(own).view_as(tokens)


class CorrectingSampler(UniformSampler):
    """Psi-samplers, predictor and corrector in one (arXiv 2602.21185): each position's law is the superposition

        (1 - c) q(next | now, p)  +  c q(next | data),  data ~ q(data | now, p),

    which has the right marginals for every c and lets late steps undo what earlier ones settled. Here c = min(1, sigma / (1 -
    kappa')), with sigma by the rules of ReMDM (arXiv 2503.00307); the last step has c = 0.

    Args:
        rule: "constant": c = corrector; else sigma is "cap": min(corrector, its largest value), "rescale": corrector times its
            largest value, min(1, (1 - kappa') / kappa).
        corrector: how much is noised anew in a step, by the rule; 0 is ancestral sampling.
        options: of UniformSampler.
    """

    def __init__(self, rule: str, corrector: Share = 0.05, **options: Any):
        super().__init__(**options)
        self.rule, self.corrector = rule, corrector

    def corrected_share(self, kappa: float, kappa_next: float) -> float:
        if kappa_next == 1:
            return 0.0
        if self.rule == "constant":
            return self.corrector
        largest = min(1.0, (1 - kappa_next) / kappa) if kappa > 0 else 1.0
        sigma = min(self.corrector, largest) if self.rule == "cap" else self.corrector * largest
        return min(1.0, sigma / (1 - kappa_next))
