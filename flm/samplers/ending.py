"""Where a text ends, and draws at masked positions that respect it. B batch, L length, V vocabulary, M positions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from flm.posterior import TokenPosterior, draw_from, softmax64, truncate
from flm.ranges import TokenId
from flm.samplers.canvas import Canvas

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ending:
    """The options of `MaskedSampler` about the token that ends a text; see there.

    Raises:
        ValueError: another option is given without end_id.
    """

    end_id: TokenId | None = None
    end_penalty: float = 0.0
    end_last: bool = False
    stop_at_end: bool = False

    def __post_init__(self) -> None:
        if self.end_id is None and (self.end_penalty or self.end_last or self.stop_at_end):
            raise ValueError("sampling.end_penalty, end_last and stop_at_end need sampling.end_id")

    def closed(self, tokens: Tensor, masked: Tensor, canvas: Canvas) -> tuple[Tensor, Tensor]:
        """Tokens and masks (B, L) after the rest of each hole behind a text's end is filled, if `stop_at_end`."""
        if not self.stop_at_end:
            return tokens, masked
        ends = canvas.editable & ~masked & (tokens == self.end_id) & (masked.cumsum(1) == 0)
        after = masked & _behind(ends, canvas.editable)
        return tokens.masked_fill(after, self.end_id), masked & ~after


def _behind(events: Tensor, editable: Tensor) -> Tensor:
    """Positions (B, L) bool that come after an event in the same hole."""
    place = torch.arange(1, events.shape[1] + 1, device=events.device)
    last_event = torch.where(events, place, 0).cummax(1).values
    last_given = torch.where(editable, 0, place).cummax(1).values
    return editable & (last_event > last_given) & (last_event < place)


@dataclass(frozen=True)
class Offer:
    """The predictions (1, M) of a few positions, shaped by a policy."""

    posterior: TokenPosterior
    ending: Ending

    def each(self, function: Callable[[slice, Tensor], Result]) -> list[Result]:
        """function(part, p) for slices of the positions, with their probabilities p (n, V) float64 without top_k and top_p."""
        return [function(part, self._probabilities(logits)) for part, logits in self.posterior.whole.logit_chunks()]

    def _probabilities(self, logits: Tensor) -> Tensor:
        logits = logits.double()
        if self.ending.end_penalty:
            logits[:, self.ending.end_id] -= self.ending.end_penalty / self.posterior.temperature
        return softmax64(logits)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens (M,), and the log-probability (M,) of each without top_k and top_p."""

        def drawn(_: slice, p: Tensor) -> tuple[Tensor, Tensor]:
            tokens = draw_from(truncate(p, self.posterior.top_k, self.posterior.top_p), generator)
            return tokens, p.gather(1, tokens[:, None])[:, 0].log()

        tokens, found = zip(*self.each(drawn), strict=True)
        return torch.cat(tokens), torch.cat(found)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Log-probability (M,) of tokens (M,) without top_k and top_p."""
        return torch.cat(self.each(lambda part, p: p.gather(1, tokens[part, None])[:, 0].log()))

    def score(self, confidence: Callable[[Tensor], Tensor]) -> Tensor:
        """The confidence (M,) in each position's prediction, by a function of probabilities (n, V) to (n,)."""

        def scored(_: slice, p: Tensor) -> Tensor:
            values = confidence(p)
            if self.ending.end_last:  # below every confidence, and above -inf of positions that are not candidates
                values = values.masked_fill(p.argmax(-1) == self.ending.end_id, -1e30)
            return values

        return torch.cat(self.each(scored))
