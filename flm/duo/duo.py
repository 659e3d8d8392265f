"""Duo: uniform-state diffusion, learned at first on a relaxation of its states (arXiv 2506.10892).

Discrete states are the arg-maxes of a Gaussian diffusion of one-hot vectors. While the curriculum lasts, the network reads
softmax(w / temperature) of that diffusion through its input table in place of the arg-max of w: between two tokens of
almost equal noise it sees both, which takes variance out of the loss. What is minimised stays the bound of the arg-max.

B batch, L length, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Backbone, Batch, Loss
from flm.draws import Draws
from flm.duo.gaussian_relaxation import ArgmaxTransform, relaxed
from flm.duo.uniform_bound import bound_density
from flm.duo.uniform_state import UniformState, schedule_or_default
from flm.paths.mixture import Schedule
from flm.posterior import TokenPosterior
from flm.ranges import Count, Index, Positive

LAST_TIME = 1 - 1e-3  # of training, as published: the density of the bound grows without limit beyond
CURRICULUM_KAPPAS = (0.36, 0.945)  # in the middle and at the clean end of the published gamma for GPT-2's vocabulary


class Duo(UniformState, Algorithm):
    """The uniform-state diffusion language model.

    Args:
        backbone: called as backbone(vocab_size=V); gives a module with `input_table` (V, D) that maps (view (B, L, D),
            -log kappa (B,)) to a TokenPosterior.
        vocab_size: V.
        length: L.
        schedule: of the discrete diffusion, kappa(0) > 0; None: the log-linear one.
        curriculum_start, curriculum_end: optimiser steps between which the temperature goes from start to end on a
            logarithmic scale; from curriculum_end on the network reads tokens. 0: no curriculum.
        temperature_start, temperature_end: of the softmax; > 0.
        gamma_min, gamma_max: the Gaussian diffusion's log noise-to-signal ratio at the clean and at the noisy end of the
            curriculum, uniform between them; None: so that kappa is 0.945 at the clean end and 0.36 in the middle.
        top_k: how many of the noises of other tokens are drawn, the largest; the rest enter by their expectation.

    Raises:
        ValueError: an option is out of its range.
    """

    validation_metric = "nelbo_nats"
    validation_says = "the mean, with the prior's part, is an upper bound on -log p"

    def __init__(
        self,
        backbone: Backbone,
        vocab_size: Count,
        length: Count,
        schedule: Schedule | None = None,
        curriculum_start: Index = 0,
        curriculum_end: Index = 0,
        temperature_start: Positive = 1e-3,
        temperature_end: Positive = 1e-3,
        gamma_min: float | None = None,
        gamma_max: float | None = None,
        top_k: Count = 128,
    ):
        super().__init__(vocab_size, length)
        if curriculum_start > curriculum_end:
            raise ValueError(
                f"algo.curriculum_start={curriculum_start} and algo.curriculum_end={curriculum_end} must be steps in this order"
            )
        if curriculum_end == 0 and (gamma_min is not None or gamma_max is not None):
            raise ValueError(
                "algo.gamma_min and algo.gamma_max are of the curriculum, which algo.curriculum_end=0 switches off"
            )
        self.backbone = backbone(vocab_size=vocab_size)
        self.schedule = schedule_or_default(schedule)
        self.curriculum_start, self.curriculum_end = curriculum_start, curriculum_end
        self.temperature_start, self.temperature_end, self.top_k = temperature_start, temperature_end, top_k
        self.transform = ArgmaxTransform(vocab_size)
        self.gamma_min, self.gamma_max = gamma_range(self.transform, gamma_min, gamma_max, CURRICULUM_KAPPAS)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Nats of the tokens that count, of the bound at one time a sequence."""
        temperature = self.temperature(draws.step)
        tau = draws.stratified(len(batch.tokens))
        return (
            self._bound_loss(batch, tau * LAST_TIME, draws)
            if temperature is None
            else self._relaxed(batch, tau, temperature, draws)
        )

    def validation_loss(self, batch: Batch, draws: Draws) -> Loss:
        """Of tokens, over the whole clock, without the prior's part."""
        return self._bound_loss(batch, draws.stratified(len(batch.tokens)), draws)

    def context_free_loss(self, token_counts: Tensor, tau: Tensor, draws: Draws) -> Tensor:
        """Of the unigrams: without context, a token given the rest of the state is just any token."""
        p = token_counts.double() / token_counts.sum()
        size, count = self.vocab_size, 2048
        tokens = torch.multinomial(p, count, replacement=True, generator=draws.local)[None]
        others = (tokens + torch.randint(1, size, tokens.shape, generator=draws.local, device=tokens.device)) % size
        unigrams = TokenPosterior(torch.ones(1, count, 1, dtype=p.dtype, device=p.device), p.clamp_min(1e-30).log()[:, None])
        weight = torch.full((1, count), 1 / count, dtype=p.dtype, device=p.device)
        found = []
        for t in tau.double()[:, None]:
            kappa = self.schedule.kappa(t)
            keeps = kappa + (1 - kappa) / size
            kept, replaced = (bound_density(unigrams, tokens, state, kappa, 1 - kappa, weight)[0] for state in (tokens, others))
            found.append((keeps * kept + (1 - keeps) * replaced) * self.schedule.derivative(t))
        return torch.cat(found)

    def temperature(self, step: int) -> float | None:
        """Of the relaxation at an optimiser step; None once the network reads tokens."""
        if step >= self.curriculum_end:
            return None
        done = max(0, step - self.curriculum_start) / (self.curriculum_end - self.curriculum_start)
        return math.exp((1 - done) * math.log(self.temperature_start) + done * math.log(self.temperature_end))

    def _relaxed(self, batch: Batch, u: Tensor, temperature: float, draws: Draws) -> Loss:
        """The bound's density over the curriculum's part of the path, at gamma = gamma_max .. gamma_min as u is 0 .. 1."""
        span = self.gamma_max - self.gamma_min
        ratio = torch.exp(-(self.gamma_max - span * u) / 2)
        noise = self.transform.noise(ratio)
        kappa = 1 - noise
        speed = self.transform.derivative(ratio) * ratio * span / 2  # d kappa / du
        table = self.backbone.input_table
        view, state = relaxed(batch.tokens, ratio, temperature, table, self.top_k, draws.rows)
        given = batch.given
        view = torch.where(given[..., None], nn.functional.embedding(batch.tokens, table), view)
        state = torch.where(given, batch.tokens, state)
        return self._density_loss(batch, view, state, kappa, noise, speed, self.schedule.inverse(kappa))


def gamma_range(
    transform: ArgmaxTransform, gamma_min: float | None, gamma_max: float | None, kappas: tuple[float, float]
) -> tuple[float, float]:
    """gamma at the clean and at the noisy end, as given, or for the arg-max's kappa in the middle and at the clean end.

    Not for kappa at both ends: in a small vocabulary the noisy one is far out, and most of a uniform gamma would be noise.

    Raises:
        ValueError: they are in the wrong order.
    """
    ratio = transform.inverse(torch.tensor(kappas, dtype=torch.float64, device="cpu"))
    middle, clean = (-2 * ratio.log()).tolist()
    low = clean if gamma_min is None else gamma_min
    high = 2 * middle - low if gamma_max is None else gamma_max
    if not low < high:
        raise ValueError(f"algo.gamma_min={low} must be below algo.gamma_max={high}")
    return low, high
