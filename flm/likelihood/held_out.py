"""The likelihood of held-out text: -log p of blocks, exact or an upper bound, averaged over blocks and draws."""

import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flm.algos.algorithm import Algorithm, Batch
from flm.draws import Draws
from flm.likelihood.bits_per_byte import bits_per_byte, bits_per_token, perplexity
from flm.measures.estimate import Estimate


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """-log p(text) in nats; float() gives `nats`.

    Attributes:
        nats: of the whole text.
        kind: "exact", or the kind of upper bound that `nats` estimates.
        standard_error: of the estimate, over draws; 0 if it is exact, None with one draw. It does not account for the
            stratification of their times, so it is rather too large.
        num_tokens: of the text.
    """

    nats: float
    kind: str
    standard_error: float | None
    num_tokens: int

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.num_tokens

    def __float__(self) -> float:
        return self.nats


@dataclass(frozen=True)
class Likelihood:
    """Nats per scored token of N sequences. The nats of padding that is a target are included, but it is not counted.

    Attributes:
        nats_per_token: all nats divided by all scored tokens. Its error is over sequences, of any lengths: how far other text
            might differ.
        monte_carlo_error: standard error over draws, for this text, in nats per token; 0 if the value is exact, None with one
            draw. It does not account for the stratification of the draws, so it is rather too large.
        parts: nats per token of each part of the bound, which add up to the mean; None for a part without draws.
        draws_by_part: number of draws that evaluated each part, of all sequences together.
        num_tokens: scored tokens of all sequences.
        num_draws: draws for each sequence.
        num_padding: targets that only fill up rows.
    """

    nats_per_token: Estimate
    monte_carlo_error: float | None
    parts: dict[str, float | None]
    draws_by_part: dict[str, int]
    num_tokens: int
    num_draws: int
    num_padding: int = 0

    def in_units(self, num_bytes: float, num_characters: float) -> dict[str, Any]:
        """Plain values for a result file, for tokens that stand for so many bytes of UTF-8 and so many characters."""
        mean, error = self.nats_per_token.mean, self.monte_carlo_error
        per_nat = {
            "bits_per_token": bits_per_token(1.0),
            "bits_per_byte": bits_per_byte(1.0, self.num_tokens, num_bytes),
            "bits_per_character": bits_per_token(1.0) * self.num_tokens / num_characters,
        }
        slopes = {"nats": 1.0, "perplexity": perplexity(mean), **per_nat}  # d perplexity / d nats is the perplexity
        return {
            "nats_per_token": mean,
            "standard_error_nats": self.nats_per_token.standard_error,
            "perplexity": perplexity(mean),
            **{name: mean * slope for name, slope in per_nat.items()},
            # `error and`: None stays None, and 0 stays 0 even if the perplexity overflows
            **{f"monte_carlo_error_{name}": error and error * slope for name, slope in slopes.items()},
            "parts_nats_per_token": self.parts,
            "draws_by_part": self.draws_by_part,
            "sequences": self.nats_per_token.count,
            "tokens": self.num_tokens,
            "padding_scored": self.num_padding,
            "draws_per_example": self.num_draws,
        }


@dataclass(frozen=True)
class DrawnBound:
    """Draws of the bound of one batch.

    Attributes:
        nats: (B, num_draws) float64 on the CPU, summed over each sequence's scored tokens.
        parts: for each part of the bound, its nats (mean over draws, sum over the batch) and the draws that evaluated it.
        num_tokens: (B,) int64 on the CPU, scored tokens of each sequence without padding.
        num_padding: scored padding of the batch.
    """

    nats: Tensor
    parts: dict[str, tuple[float, int]]
    num_tokens: Tensor
    num_padding: int = 0


class Sharing(Protocol):
    """Several processes that divide the batches among them; `flm.tasks.processes.Team` is one."""

    def share(self, count: int) -> range:
        """This process's share of `count` pieces of work."""
        ...

    def all_of(self, mine: list[Any]) -> list[Any]:
        """The results of all pieces in order, given those of this process's share."""
        ...


@torch.no_grad()
def drawn_bounds(
    algorithm: Algorithm,
    batches: Iterable[Batch],
    num_draws: int,
    seed: int,
    options: Mapping[str, Any] | None = None,
    on_draw: Callable[[], None] | None = None,
    wanted: Container[int] | None = None,
) -> Iterator[DrawnBound]:
    """Draws of `algorithm.bound` for each batch; draw d of batch b is draw b * num_draws + d of the seed.

    Args:
        options: keyword arguments of `bound`.
        on_draw: called after each evaluation of one batch.
        wanted: indices of the batches to evaluate; None: all.
    """
    device = next(algorithm.parameters(), torch.empty(0)).device
    for index, batch in enumerate(batches):
        if wanted is not None and index not in wanted:
            continue
        batch = batch.to(device)
        columns, sums, fallen = [], defaultdict[str, float](float), defaultdict[str, int](int)
        for draw in range(num_draws):
            bound = algorithm.bound(batch, Draws(seed, index * num_draws + draw, device=device), **(options or {}))
            columns.append(bound.nats.double().cpu())
            drawn = getattr(bound, "drawn", {})  # absent if every draw evaluates every part
            for name, values in bound.parts.items():
                sums[name] += values.double().sum().item() / num_draws
                fallen[name] += int(drawn[name].sum()) if name in drawn else len(values)
            if on_draw is not None:
                on_draw()
        parts = {name: (value, fallen[name]) for name, value in sums.items()}
        counted = batch.counted.sum(1).cpu()
        yield DrawnBound(torch.stack(columns, 1), parts, counted, int(batch.scored.sum()) - int(counted.sum()))


def likelihood(
    algorithm: Algorithm,
    batches: Iterable[Batch],
    draws_per_example: int,
    seed: int,
    options: Mapping[str, Any] | None = None,
    on_draw: Callable[[], None] | None = None,
    sharing: Sharing | None = None,
) -> Likelihood:
    """Mean of `drawn_bounds` over all sequences of the batches; an exact value takes one draw.

    Args:
        sharing: each process evaluates its share of the batches, which must then have a length, and all get the whole result.
            None: there is one process.

    Raises:
        ValueError: no token is scored.
    """
    num_draws = 1 if algorithm.bound_kind == "exact" else draws_per_example
    nats, counts, parts, fallen, num_padding = [], [], defaultdict[str, float](float), defaultdict[str, int](int), 0
    mine = None if sharing is None else sharing.share(len(batches))  # type: ignore[arg-type]
    found = drawn_bounds(algorithm, batches, num_draws, seed, options, on_draw, mine)
    for drawn in found if sharing is None else sharing.all_of(list(found)):
        nats.append(drawn.nats)
        counts.append(drawn.num_tokens)
        num_padding += drawn.num_padding
        for name, (value, count) in drawn.parts.items():
            parts[name] += value
            fallen[name] += count
    num_tokens = sum(int(count.sum()) for count in counts)
    if not num_tokens:
        raise ValueError("no token of the text is to be scored: all are given, or padding")
    values = torch.cat(nats)
    error: float | None = 0.0
    if algorithm.bound_kind != "exact":
        error = math.sqrt((values.var(1) / num_draws).sum().item()) / num_tokens if num_draws > 1 else None
    return Likelihood(
        Estimate.ratio(values.mean(1).tolist(), torch.cat(counts).tolist()),
        error,
        {name: value / num_tokens if fallen[name] else None for name, value in parts.items()},
        dict(fallen),
        num_tokens,
        num_draws,
        num_padding,
    )


def text_likelihood(algorithm: Algorithm, tokens: list[int], length: int, draws: int, seed: int) -> NegativeLogLikelihood:
    """The likelihood of one text, cut into blocks of `length` tokens, each scored alone; an exact value needs no draws."""
    exact = algorithm.bound_kind == "exact"
    rows = 1 if exact else draws
    blocks = [torch.tensor(tokens[start : start + length]) for start in range(0, len(tokens), length)]
    # one row for each draw, since times are stratified over rows
    batches = [Batch(block.expand(rows, -1), torch.ones(rows, len(block))) for block in blocks]
    found = [drawn.nats[:, 0] for drawn in drawn_bounds(algorithm, batches, 1, seed)]
    nats = sum(values.mean().item() for values in found)
    error = math.sqrt(sum(values.var().item() / rows for values in found)) if rows > 1 else None
    return NegativeLogLikelihood(nats, str(algorithm.bound_kind), 0.0 if exact else error, len(tokens))
