"""Writing over masks: samplers of absorbing diffusion, which fill the editable positions of a canvas in any order.

When a mask is written does not depend on what is predicted, so the network is evaluated only at steps, and on sequences,
where something is. That is the caching of unchanged states (arXiv 2406.07524) without a cache: states between two
evaluations are never asked about. It is exact for a network that is told the time, too. B batch, L length, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from flm.paths.mixture import MaskSource, Schedule, jump_probability
from flm.posterior import TokenPosterior
from flm.samplers.canvas import Canvas
from flm.samplers.flow import Moment, OnStep, check_steps


class MaskedDenoiser(Protocol):
    """What these samplers ask: the mask, the schedule they follow, and the prediction of the tokens behind the masks.

    Called with a state (B, L) and its time (B,); gives a posterior (B, L) over the V ids of the data, read at masks alone.
    """

    source: MaskSource
    schedule: Schedule

    def __call__(self, tokens: Tensor, t: Tensor) -> TokenPosterior: ...


@dataclass(frozen=True)
class Step:
    """One step: index in [0, steps), the time it starts from, the share of positions known there and at its end.

    `free` (B,) is how many positions each sequence has to fill in all.
    """

    index: int
    steps: int
    t: float
    kappa: float
    kappa_next: float
    free: Tensor


@dataclass(frozen=True)
class CarriedOver:
    """A prediction that is certain of `known` (B, L) where not `asked` (B, L) (SUBS, arXiv 2406.07524)."""

    posterior: TokenPosterior
    known: Tensor
    asked: Tensor

    @property
    def vocab_size(self) -> int:
        return self.posterior.vocab_size

    @property
    def shape(self) -> torch.Size:
        """(B, L)."""
        return self.posterior.shape

    def rows(self, index: slice) -> "CarriedOver":
        return CarriedOver(self.posterior.rows(index), self.known[index], self.asked[index])

    def chunk(self, part: slice) -> Tensor:
        """Probabilities (n, V) of one slice of the flattened token axis."""
        p, known = self.posterior.chunk(part), self.known.reshape(-1)[part, None]
        certain = torch.zeros_like(p).scatter_(1, known.clamp(max=p.shape[1] - 1), 1.0)
        return torch.where(self.asked.reshape(-1)[part, None], p, certain)

    def argmax(self) -> Tensor:
        """Most probable token (B, L)."""
        return torch.where(self.asked, self.posterior.argmax(), self.known)


@dataclass(frozen=True)
class Unmasking(Moment):
    """After one step: what was predicted in it or last before it, what stands now, and what is still masked (B, L)."""

    so_far: Tensor
    masked: Tensor

    def tokens(self) -> Tensor:
        """What is written, and the most probable tokens where nothing is."""
        return torch.where(self.masked, self.posterior.argmax(), self.so_far)


class Reading:
    """The network's latest prediction for each sequence of a batch, brought up to date where it is asked for."""

    def __init__(self, denoiser: MaskedDenoiser, temperature: float):
        self.denoiser, self.temperature = denoiser, temperature
        self.posterior: TokenPosterior | None = None

    def read(self, tokens: Tensor, t: float, rows: Tensor) -> None:
        """Evaluates the network on the sequences `rows` (B,) bool of tokens (B, L); on all the first time."""
        everything = self.posterior is None or bool(rows.all())
        part = tokens if everything else tokens[rows]
        time = torch.full((len(part),), t, device=tokens.device, dtype=torch.float32)
        found = self.denoiser(part, time).tempered(self.temperature)
        if not everything:
            hidden = self.posterior.hidden.clone()  # who was shown the last prediction keeps it
            hidden[rows] = found.hidden
            found = replace(found, hidden=hidden)
        self.posterior = found

    def at(self, positions: Tensor) -> TokenPosterior:
        """The prediction (1, M) at the M positions (B, L) bool."""
        return replace(self.posterior, hidden=self.posterior.hidden[positions][None])


class MaskedSampler:
    """Base: keeps the books of what is masked, and draws what is written, in float64.

    No mask is left, whatever the number of steps.

    Args:
        temperature: divides the logits; > 0.
        top_k: draw among the k most probable tokens; None: among all.
        top_p: draw among the fewest most probable tokens whose mass reaches this share in (0, 1]; None: among all.
    """

    def __init__(self, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None):
        if not temperature > 0:
            raise ValueError(f"sampling.temperature must be above 0, not {temperature}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"sampling.top_k must be at least 1, not {top_k}")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"sampling.top_p must be in (0, 1], not {top_p}")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    @torch.no_grad()
    def __call__(
        self, denoiser: MaskedDenoiser, canvas: Canvas, steps: int, generator: torch.Generator, on_step: OnStep = None
    ) -> Tensor:
        check_steps(steps)
        kappas = self.kappas(denoiser.schedule, steps)
        times = denoiser.schedule.inverse(kappas).tolist()
        shares = kappas.tolist()
        masked, free = canvas.editable, canvas.editable.sum(1)
        tokens = canvas.fill(denoiser.source.sample(canvas.tokens, generator))
        reading = Reading(denoiser, self.temperature)
        for i in range(steps):
            step = Step(i, steps, times[i], shares[i], shares[i + 1], free)
            asked, state = masked, tokens
            written = self.written(step, reading, tokens, masked, generator)
            if written.any():
                drawn = reading.at(written).draw(generator, self.top_k, self.top_p)
                tokens, masked = state.masked_scatter(written, drawn), asked & ~written
            erased = self.erased(step, canvas.editable & ~asked, generator)
            if erased is not None:
                tokens, masked = tokens.masked_fill(erased, denoiser.source.mask_id), masked | erased
            if on_step is not None and reading.posterior is not None:
                shown = CarriedOver(reading.posterior, tokens, asked | masked)
                on_step(Unmasking(i, steps, step.t, shown, canvas, tokens, masked))
        return tokens

    def kappas(self, schedule: Schedule, steps: int) -> Tensor:
        """Share of the positions known at each of the times, (steps + 1,) float64 on the CPU; 1 at the last."""
        return schedule.kappa(torch.linspace(0, 1, steps + 1, dtype=torch.float64))

    def written(self, step: Step, reading: Reading, tokens: Tensor, masked: Tensor, generator: torch.Generator) -> Tensor:
        """Which of the masks (B, L) bool are written now; the sequences where there are any have been read."""
        raise NotImplementedError

    def erased(self, step: Step, known: Tensor, generator: torch.Generator) -> Tensor | None:
        """Which of the positions that were `known` (B, L) bool before the step are masked again; None: none ever."""
        return None


class AncestralSampler(MaskedSampler):
    """The diffusion run backwards: each mask is written with the exact transition's probability, independently.

    At most one network evaluation a step, and at most as many as the batch has positions to fill.
    """

    def written(self, step: Step, reading: Reading, tokens: Tensor, masked: Tensor, generator: torch.Generator) -> Tensor:
        u = torch.rand(masked.shape, generator=generator, dtype=torch.float64, device=masked.device)
        written = masked & (u < self.probability(step))
        rows = written.any(1)
        if rows.any():
            reading.read(tokens, step.t, rows)
        return written

    def probability(self, step: Step) -> float:
        return jump_probability(step.kappa, step.kappa_next)


def top_probability(p: Tensor) -> Tensor:
    """How sure a prediction (n, V) is: the probability of its first choice."""
    return p.amax(-1)


def top_margin(p: Tensor) -> Tensor:
    """How far its first choice is ahead of its second (arXiv 2502.06768)."""
    first, second = p.topk(2, dim=-1).values.unbind(-1)
    return first - second


def low_entropy(p: Tensor) -> Tensor:
    """The negative entropy."""
    return -torch.special.entr(p).sum(-1)


CONFIDENCES = {"top_probability": top_probability, "top_margin": top_margin, "low_entropy": low_entropy}


class ConfidenceSampler(MaskedSampler):
    """Writes where the prediction is surest first, as many positions a step as the schedule says (arXiv 2202.04200).

    With one position a step every order is exact for an exact posterior; with more, sure positions depend less on each
    other. A real network's order of confidence changes what is sampled, and takes diversity for quality.

    Args:
        confidence: a key of CONFIDENCES; measured at the sampler's temperature, before top_k and top_p.
    """

    def __init__(self, confidence: str = "top_probability", **options: float | int | None):
        super().__init__(**options)
        self.confidence = CONFIDENCES[confidence]

    def written(self, step: Step, reading: Reading, tokens: Tensor, masked: Tensor, generator: torch.Generator) -> Tensor:
        quota = masked.sum(1) - (step.free * (1 - step.kappa_next)).round().long()
        rows = quota > 0
        if not rows.any():
            return torch.zeros_like(masked)
        reading.read(tokens, step.t, rows)
        asked = masked & rows[:, None]
        pieces = [self.confidence(logits.softmax(-1)) for _, logits in reading.at(asked).logit_chunks()]
        score = torch.full(masked.shape, -torch.inf, device=masked.device, dtype=pieces[0].dtype)
        score[asked] = torch.cat(pieces)
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(1)
        return asked & (rank < quota[:, None])
