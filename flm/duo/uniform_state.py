"""What uniform-state diffusion models have in common, however they are trained: denoiser, samplers, bound, validation.

B batch, L length, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flm.algos.algorithm import Batch, Bound, BoundVariant, Loss, Sampler
from flm.algos.losses import summed
from flm.draws import Draws
from flm.duo.uniform_bound import bound_density, prior_nats, uniform_density
from flm.duo.uniform_sampler import CorrectingSampler, UniformSampler
from flm.models.attention import document_mask
from flm.paths.mixture import LogLinear, Schedule, UniformSource, corrupt
from flm.posterior import TokenPosterior
from flm.samplers.verified import Verifiable

SOLVERS: dict[str, Callable[..., Sampler]] = {
    "ancestral": Verifiable(UniformSampler),
    **{f"corrector_{rule}": Verifiable(partial(CorrectingSampler, rule)) for rule in ("constant", "cap", "rescale")},
}


class UniformStatePredictor:
    """What samplers ask of a backbone that reads token ids and, as published, -log kappa for the time."""

    def __init__(self, backbone: nn.Module, source: UniformSource, schedule: Schedule):
        self.backbone, self.source, self.schedule = backbone, source, schedule

    def __call__(self, tokens: Tensor, t: Tensor, documents: Tensor | None = None) -> TokenPosterior:
        view = F.embedding(tokens, self.backbone.input_table)
        return predict(self.backbone, view, self.schedule.kappa(t.double()), documents)


def predict(backbone: nn.Module, view: Tensor, kappa: Tensor, documents: Tensor | None) -> TokenPosterior:
    """The prediction from views (B, L, D) at kappa (B,) in (0, 1]."""
    options = {} if documents is None else {"mask": document_mask(documents)}
    return backbone(view, -kappa.log().to(view.dtype), **options)


class UniformState:
    """Mixin for an Algorithm with one `backbone` and a `schedule`: the path from uniform noise, not how it is learned."""

    bound_kind = "variational upper bound"
    samplers = SOLVERS
    backbone: nn.Module
    vocab_size: int
    schedule: Schedule

    @property
    def source(self) -> UniformSource:
        return UniformSource(self.vocab_size)

    def denoiser(self) -> UniformStatePredictor:
        return UniformStatePredictor(self.backbone, self.source, self.schedule)

    def bound(self, batch: Batch, draws: Draws, control: float = 0.0) -> Bound:
        """The density of the bound at one kappa of each sequence, and the prior term.

        1 - kappa is drawn as a square: where it is small the density is rarely anything and then large, and with a uniform
        draw its variance would be infinite.

        Args:
            control: the share of the uniform prediction's density that is exchanged for its mean: no bias, less variance.
        """
        drawn, reference, mean = self._draw_density(batch, draws)
        start = self.schedule.kappa(torch.zeros((), dtype=torch.float64, device=drawn.device))
        diffusion = drawn - control * (reference - mean)
        prior = batch.scored.sum(1) * prior_nats(start, self.vocab_size)
        return Bound(diffusion + prior, {"diffusion": diffusion, "prior": prior})

    def bound_variants(self, training: Sequence[Batch], draws: Draws, **options: Any) -> dict[str, BoundVariant]:
        """The one bound; its control is fitted to training batches, at least two of which it needs."""
        if sum(len(batch.tokens) for batch in training) < 2:
            return {"network": BoundVariant()}
        found = [self._draw_density(batch, draws) for batch in training]
        drawn, reference = (torch.cat(column) for column in list(zip(*found, strict=True))[:2])
        covariance = torch.cov(torch.stack((drawn, reference)))
        control = (covariance[0, 1] / covariance[1, 1].clamp_min(1e-30)).clamp(0, 1).item()
        return {"network": BoundVariant({"control": control}, None, [{"control": control}])}

    @torch.no_grad()
    def _draw_density(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Unbiased draws (B,) of the bound without its prior, of the same of the uniform prediction, and the latter's mean."""
        root = 1 - draws.stratified(len(batch.tokens))  # in (0, 1]
        start = self.schedule.kappa(torch.zeros((), dtype=torch.float64, device=root.device))
        noise = (1 - start) * root.square()
        kappa, weight = 1 - noise, (1 - start) * 2 * root
        scored = batch.scored
        state = torch.where(scored, corrupt(batch.tokens, kappa, self.source, draws.rows), batch.tokens)
        posterior = self._predict(F.embedding(state, self.backbone.input_table), kappa, batch)
        weight_of = scored.to(torch.float64)
        _, density = bound_density(posterior, batch.tokens, state, kappa, noise, weight_of)
        density, uniform = (
            density * weight_of,
            uniform_density(state == batch.tokens, kappa, noise, self.vocab_size) * weight_of,
        )
        mean = scored.sum(1) * (math.log(self.vocab_size) - prior_nats(start, self.vocab_size))
        return density.double().sum(1) * weight, uniform.sum(1) * weight, mean

    def _bound_loss(self, batch: Batch, t: Tensor, draws: Draws) -> Loss:
        """The bound's density per unit of the clock, without the prior, at times t (B,) < 1; given positions stay clean."""
        kappa = self.schedule.kappa(t)
        state = corrupt(batch.tokens, kappa, self.source, draws.rows)
        state = torch.where(batch.given, batch.tokens, state)
        view = F.embedding(state, self.backbone.input_table)
        return self._density_loss(batch, view, state, kappa, 1 - kappa, self.schedule.derivative(t), t)

    def _density_loss(
        self, batch: Batch, view: Tensor, state: Tensor, kappa: Tensor, noise: Tensor, speed: Tensor, tau: Tensor
    ) -> Loss:
        """speed (B,) times the bound's density, over the tokens that count."""
        posterior = self._predict(view, kappa, batch)
        weight = speed[:, None].to(batch.weight) * batch.weight
        total, density = bound_density(posterior, batch.tokens, state, kappa, noise, weight)
        return summed(total, density, batch.weight, tau, speed)

    def _predict(self, view: Tensor, kappa: Tensor, batch: Batch) -> TokenPosterior:
        return predict(self.backbone, view, kappa, batch.documents)


def schedule_or_default(schedule: Schedule | None) -> Schedule:
    """The log-linear one where none is given; it must not start at 0, where -log kappa is infinite.

    Raises:
        ValueError: it does.
    """
    schedule = LogLinear() if schedule is None else schedule
    if not schedule.kappa(torch.zeros((), dtype=torch.float64, device="cpu")) > 0:
        raise ValueError("algo.schedule must start above 0: the network is told -log kappa; take flm.paths.mixture.LogLinear")
    return schedule
