"""Filling masks in an order of confidence. B batch, L length, V vocabulary."""

from typing import Any

import torch
from torch import Tensor

from flm.ranges import Bounded, NonNegative, Share
from flm.samplers.masked import MaskedSampler, Reading, Step


def top_probability(p: Tensor) -> Tensor:
    """The largest of the probabilities (n, V)."""
    return p.amax(-1)


def top_margin(p: Tensor) -> Tensor:
    """The difference of the two largest probabilities (arXiv 2502.06768)."""
    first, second = p.topk(2, dim=-1).values.unbind(-1)
    return first - second


def low_entropy(p: Tensor) -> Tensor:
    """The negative entropy."""
    return -torch.special.entr(p).sum(-1)


CONFIDENCES = {"top_probability": top_probability, "top_margin": top_margin, "low_entropy": low_entropy}


class OrderSampler(MaskedSampler):
    """Base of samplers that write a fixed number of positions per step, by the schedule, those with the largest `values`."""

    def written(self, step: Step, reading: Reading, tokens: Tensor, masked: Tensor, generator: torch.Generator) -> Tensor:
        quota = self.quota(step, masked)
        rows = quota > 0
        if not rows.any():
            return torch.zeros_like(masked)
        reading.read(tokens, rows)
        asked = masked & rows[:, None]
        values = self.values(reading, asked, generator)
        found = torch.full(masked.shape, -torch.inf, device=masked.device, dtype=values.dtype)
        found[asked] = values.nan_to_num(neginf=torch.finfo(values.dtype).min)  # above -inf of other positions
        return self.chosen(found, asked, quota)

    def quota(self, step: Step, masked: Tensor) -> Tensor:
        """How many masks of each sequence (B,) are written."""
        return masked.sum(1) - step.left()

    def values(self, reading: Reading, asked: Tensor, generator: torch.Generator) -> Tensor:
        """A value (M,) float64 for each of the M positions `asked` (B, L) bool; the highest are written first."""
        raise NotImplementedError

    def chosen(self, values: Tensor, asked: Tensor, quota: Tensor) -> Tensor:
        rank = values.argsort(dim=1, descending=True, stable=True).argsort(1)
        return asked & (rank < quota[:, None])


class ConfidenceSampler(OrderSampler):
    """Writes the positions with the most confident predictions first (arXiv 2202.04200).

    With one position per step every order is exact for an exact posterior. With more, confident positions depend less on each
    other. For a real network the order of confidence changes the distribution of samples: less diversity, more quality.

    Args:
        confidence: a key of CONFIDENCES, measured at the sampler's temperature (1 if that is 0), without top_k and top_p.
        order_temperature: positions are drawn without replacement with probabilities proportional to
            exp(confidence / order_temperature); 0: always the most confident ones.
    """

    def __init__(self, confidence: str = "top_probability", order_temperature: Bounded = 0.0, **options: Any):
        super().__init__(**options)
        self.confidence, self.order_temperature = CONFIDENCES[confidence], order_temperature

    def values(self, reading: Reading, asked: Tensor, generator: torch.Generator) -> Tensor:
        values = reading.at(asked).score(self.confidence)
        if self.order_temperature > 0:  # Gumbel top-k: the largest values plus noise are such a draw
            u = torch.rand(values.shape, generator=generator, dtype=values.dtype, device=values.device)
            values = values / self.order_temperature - (-u.clamp_min(1e-300).log()).log()
        return values


class RandomOrderSampler(OrderSampler):
    """Writes positions in random order: ancestral sampling with a fixed number of positions per step."""

    def values(self, reading: Reading, asked: Tensor, generator: torch.Generator) -> Tensor:
        return torch.rand(int(asked.sum()), generator=generator, dtype=torch.float64, device=asked.device)


class ThresholdSampler(OrderSampler):
    """Writes every mask whose most probable token reaches a threshold, and at least as many as the schedule says and one.

    Fast-dLLM (arXiv 2505.22618). With as many steps as positions the schedule asks for one per step, and a confident network
    needs fewer evaluations than that.

    Args:
        threshold: probability from which a position is written at once.
    """

    def __init__(self, threshold: Share = 0.9, **options: Any):
        super().__init__(**options)
        self.threshold = threshold

    def values(self, reading: Reading, asked: Tensor, generator: torch.Generator) -> Tensor:
        return reading.at(asked).score(top_probability)

    def quota(self, step: Step, masked: Tensor) -> Tensor:
        return torch.where(masked.any(1), super().quota(step, masked).clamp_min(1), 0)

    def chosen(self, values: Tensor, asked: Tensor, quota: Tensor) -> Tensor:
        return super().chosen(values, asked, quota) | (asked & (values >= self.threshold))


class DrawnConfidenceSampler(MaskedSampler):
    """Draws all masks, and keeps the most probable draws; the others are masked again (LLaDA, arXiv 2502.09992)."""

    def advance(
        self, step: Step, reading: Reading, tokens: Tensor, asked: Tensor, part: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        left = step.left()
        rows = asked.sum(1) > left
        asked, known = asked & rows[:, None], part & ~asked & rows[:, None]
        if not rows.any():
            return tokens, asked, None
        reading.read(tokens, rows)
        drawn, log_p = reading.at(asked).draw(generator)
        score = torch.full(asked.shape, torch.inf, device=asked.device, dtype=log_p.dtype)
        score[asked] = log_p
        self.question(score, reading, tokens, known)
        low = score.argsort(dim=1, stable=True).argsort(1) < left[:, None]
        return tokens.masked_scatter(asked, drawn).where(asked & ~low, tokens), asked & ~low, known & low

    def question(self, score: Tensor, reading: Reading, tokens: Tensor, known: Tensor) -> None:
        """Sets the scores (B, L) of `known` positions (B, L) bool in place. At infinity, as before the call, they stay."""


class PathPlanningSampler(DrawnConfidenceSampler):
    """The same, where written tokens may be masked again too: P2 with self-planning (arXiv 2502.03540).

    It reads predictions at positions that are not masked. The losses of a mask source do not train these, so they are
    arbitrary unless the network was trained for them otherwise.

    Args:
        eta: multiplies the log-probability of written tokens: above 1 more of them are masked again; 0: none are.
    """

    def __init__(self, eta: NonNegative = 1.0, **options: Any):
        super().__init__(**options)
        self.eta = eta

    def question(self, score: Tensor, reading: Reading, tokens: Tensor, known: Tensor) -> None:
        if self.eta > 0 and known.any():
            score[known] = self.eta * reading.at(known).log_prob(tokens[known])
