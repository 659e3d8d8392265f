"""What a model says about held-out text: -log p of blocks, exact or bounded, averaged over blocks and draws."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flm.algos.algorithm import Algorithm, Batch
from flm.draws import Draws
from flm.evaluation.bits_per_byte import bits_per_byte, bits_per_token, perplexity
from flm.evaluation.estimate import Estimate


@dataclass(frozen=True)
class Likelihood:
    """Nats per token of N sequences of L tokens.

    Attributes:
        nats_per_token: over sequences: its error says how far other text of the same kind might differ.
        monte_carlo_error: of the mean over draws, for this very text, in nats per token; 0 where the value is exact, None
            where one draw was made. Draws are stratified, which it does not see: it errs on the large side.
        parts: nats per token by part of the bound, adding up to the mean.
        num_tokens: N * L.
        num_draws: for each sequence.
    """

    nats_per_token: Estimate
    monte_carlo_error: float | None
    parts: dict[str, float]
    num_tokens: int
    num_draws: int

    def in_units(self, num_bytes: float, num_characters: float) -> dict[str, Any]:
        """Plain values for a result file; the tokens spell so many bytes of UTF-8 and so many characters."""
        mean = self.nats_per_token.mean
        return {
            "nats_per_token": mean,
            "standard_error_nats": self.nats_per_token.standard_error,
            "monte_carlo_error_nats": self.monte_carlo_error,
            "perplexity": perplexity(mean),
            "bits_per_token": bits_per_token(mean),
            "bits_per_byte": bits_per_byte(mean, self.num_tokens, num_bytes),
            "bits_per_character": bits_per_token(mean) * self.num_tokens / num_characters,
            "parts_nats_per_token": self.parts,
            "sequences": self.nats_per_token.count,
            "tokens": self.num_tokens,
            "draws_per_example": self.num_draws,
        }


@torch.no_grad()
def likelihood(
    algorithm: Algorithm,
    batches: Iterable[Batch],
    draws_per_example: int,
    seed: int,
    options: Mapping[str, Any] | None = None,
    on_draw: Callable[[], None] | None = None,
) -> Likelihood:
    """Mean of `algorithm.bound` over all sequences of the batches; an exact one is asked once.

    Args:
        options: keyword arguments of `bound`.
        on_draw: called after each evaluation of one batch.
    """
    device = next(algorithm.parameters(), torch.empty(0)).device
    num_draws = 1 if algorithm.bound_kind == "exact" else draws_per_example
    nats, parts, num_tokens = [], defaultdict(float), 0
    for index, batch in enumerate(batches):
        batch = batch.to(device)
        num_tokens += batch.tokens.numel()
        columns = []
        for draw in range(num_draws):
            bound = algorithm.bound(batch, Draws(seed, index * num_draws + draw, device=device), **(options or {}))
            columns.append(bound.nats.double().cpu())
            for name, values in bound.parts.items():
                parts[name] += values.double().sum().item() / num_draws
            if on_draw is not None:
                on_draw()
        nats.append(torch.stack(columns, 1))
    values = torch.cat(nats) * (sum(len(rows) for rows in nats) / num_tokens)  # per token
    error: float | None = 0.0
    if algorithm.bound_kind != "exact":
        error = math.sqrt((values.var(1) / num_draws).sum().item()) / len(values) if num_draws > 1 else None
    return Likelihood(
        Estimate.of(values.mean(1).tolist()),
        error,
        {name: value / num_tokens for name, value in parts.items()},
        num_tokens,
        num_draws,
    )
