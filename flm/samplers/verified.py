"""Verify by noising again: of several candidates, the one that its own model restores best (arXiv 2606.29150, first version).

A text is noised to a place of the clock and predicted from there; its drift is the mean cross-entropy of its tokens under that
prediction. Where there is one right answer, right ones drift least. Where there is none, drift favours what is frequent: best
of two under the exact model of one token of law (0.5, 0.3, 0.2) has the law (0.66, 0.24, 0.10), with eight draws (0.74, 0.21,
0.05). So it is for answers to one prompt, and no score of open text. B batch, L length.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from flm.posterior import TokenPosterior
from flm.ranges import Count, NonNegative, OpenShare
from flm.samplers.canvas import Canvas
from flm.samplers.flow import Moment, OnStep
from flm.schema import merged


class Rereader(Protocol):
    """A sampler that can look at what it wrote."""

    def __call__(
        self, denoiser: Any, canvas: Canvas, steps: int, generator: torch.Generator, on_step: OnStep = None
    ) -> Tensor: ...

    def reread(
        self, denoiser: Any, canvas: Canvas, tokens: Tensor, tau: float, generator: torch.Generator
    ) -> tuple[TokenPosterior, Tensor]:
        """The unshaped prediction (B, L) from tokens noised to tau, given ones as the sampler shows them, and where it is
        to be held against them, (B, L) bool."""
        ...


@dataclass(frozen=True)
class Verification:
    """Options of verifying.

    Args:
        candidates: texts made for each one that is kept, the one whose drift is least; 1: as it comes, nothing is verified.
        verify_tau: where on the clock candidates are noised to.
        verify_draws: noises of each candidate, one network evaluation each.
        accept_below: no more candidates for a text once one drifts less, nats per token; None: all are made.

    Raises:
        ValueError: one of the others where there is one candidate.
    """

    candidates: Count = 1
    verify_tau: OpenShare = 0.4
    verify_draws: Count = 1
    accept_below: NonNegative | None = None

    def __post_init__(self) -> None:
        unread = [field.name for field in fields(self)[1:] if getattr(self, field.name) != field.default]
        if self.candidates == 1 and unread:
            raise ValueError(f"sampling.{unread[0]} is for sampling.candidates above 1")


class Verified:
    """Any sampler that can reread, run several times. A batch is sampled until each of its texts is accepted."""

    def __init__(self, sampler: Rereader, options: Verification):
        self.sampler, self.options = sampler, options

    @torch.no_grad()
    def __call__(self, denoiser: Any, canvas: Canvas, steps: int, generator: torch.Generator, on_step: OnStep = None) -> Tensor:
        """`on_step` is shown the first candidate, and at each evaluation after it that one's last moment again: who watches may
        end the run by raising."""
        options, kept = self.options, canvas.tokens
        best = torch.full((len(kept),), torch.inf, dtype=torch.float64, device=kept.device)
        shown = None if on_step is None else _Shown(on_step)
        for number in range(options.candidates):
            watch = shown if number == 0 or shown is None else shown.again
            tokens = self.sampler(denoiser, canvas, steps, generator, watch)
            found = self.drift(denoiser, canvas, tokens, generator, None if shown is None else shown.again)
            is_open = (
                best >= options.accept_below if options.accept_below is not None else torch.ones_like(best, dtype=torch.bool)
            )
            better = is_open & ((found < best) | (number == 0))
            kept, best = torch.where(better[:, None], tokens, kept), torch.where(better, found, best)
            if options.accept_below is not None and bool((best < options.accept_below).all()):
                break
        return kept

    def drift(
        self,
        denoiser: Any,
        canvas: Canvas,
        tokens: Tensor,
        generator: torch.Generator,
        after_each: Callable[[], None] | None = None,
    ) -> Tensor:
        """(B,) mean nats of the tokens under predictions from their noised selves; 0 where nothing was noised.

        after_each: called after each prediction.
        """
        nats = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
        count = torch.zeros_like(nats)
        for _ in range(self.options.verify_draws):
            posterior, asked = self.sampler.reread(denoiser, canvas, tokens, self.options.verify_tau, generator)
            nats -= (posterior.log_prob(tokens).double().where(asked, 0.0)).sum(1)
            count += asked.sum(1)
            if after_each is not None:
                after_each()
        return nats / count.clamp_min(1)


class _Shown:
    """What `on_step` has seen last."""

    def __init__(self, on_step: Callable[[Moment], None]):
        self.on_step = on_step
        self.last: Moment | None = None

    def __call__(self, moment: Moment) -> None:
        self.last = moment
        self.on_step(moment)

    def again(self, _: Any = None) -> None:
        if self.last is not None:
            self.on_step(self.last)


class Verifiable:
    """A class of samplers that can reread, with the options of verifying beside its own.

    Args:
        kind: the class, or a partial of it.
    """

    also = Verification  # whose options it takes too

    def __init__(self, kind: Callable[..., Rereader]):
        self.kind = kind
        self.__name__ = getattr(kind, "__name__", None) or kind.func.__name__
        self.__signature__ = merged(kind, Verification)

    def __call__(self, **options: Any) -> Any:
        names = {field.name for field in fields(Verification)}
        verification = Verification(**{name: options.pop(name) for name in names & options.keys()})
        sampler = self.kind(**options)
        return sampler if verification.candidates == 1 else Verified(sampler, verification)
