"""Verification by noising again: keeps, of several candidates, the one that its own model restores best.

After arXiv 2606.29150, first version. A text is noised to some clock time and predicted from there. Its drift is the mean
cross-entropy of its tokens under that prediction. If a question has one right answer, right answers drift least. If it has
none, drift favours frequent texts: for one token with probabilities (0.5, 0.3, 0.2) and the exact model, the best of two has
probabilities (0.66, 0.24, 0.10), and with eight draws (0.74, 0.21, 0.05). So use it for answers to a prompt, and not as a score
of open text. B batch, L length.
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
    """A sampler that can predict a finished text from its noised self."""

    def __call__(
        self, denoiser: Any, canvas: Canvas, steps: int, generator: torch.Generator, on_step: OnStep = None
    ) -> Tensor: ...

    def reread(
        self, denoiser: Any, canvas: Canvas, tokens: Tensor, tau: float, generator: torch.Generator
    ) -> tuple[TokenPosterior, Tensor]:
        """The prediction (B, L), not shaped by a policy, from tokens noised to tau, and which positions count, (B, L) bool.

        Given tokens are shown as in sampling.
        """
        ...


@dataclass(frozen=True)
class Verification:
    """Options of verification.

    Args:
        candidates: texts made for each that is kept, which is the one with the least drift; 1: no verification.
        verify_tau: clock time that candidates are noised to.
        verify_draws: noise draws for each candidate, with one network evaluation each.
        accept_below: nats per token; once a candidate drifts less, it is kept without making more. None: all are made.

    Raises:
        ValueError: another option is given with candidates=1.
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
    """A sampler that is run several times. A batch is sampled again until each of its texts is accepted."""

    def __init__(self, sampler: Rereader, options: Verification):
        self.sampler, self.options = sampler, options

    @torch.no_grad()
    def __call__(self, denoiser: Any, canvas: Canvas, steps: int, generator: torch.Generator, on_step: OnStep = None) -> Tensor:
        """`on_step` gets the moments of the first candidate, and then its last moment again at each further evaluation.

        So it can end the run at any time by raising.
        """
        options, kept = self.options, canvas.tokens
        best = torch.full((len(kept),), torch.inf, dtype=torch.float64, device=kept.device)
        shown = None if on_step is None else _Shown(on_step)
        for number in range(options.candidates):
            watch = shown if number == 0 or shown is None else shown.again
            tokens = self.sampler(denoiser, canvas, steps, generator, watch)
            found = self.drift(denoiser, canvas, tokens, generator, None if shown is None else shown.again)
            limit = -torch.inf if options.accept_below is None else options.accept_below
            better = (best >= limit) & ((found < best) | (number == 0))
            kept, best = torch.where(better[:, None], tokens, kept), torch.where(better, found, best)
            if bool((best < limit).all()):
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
        """Mean nats (B,) of the tokens under predictions from their noised selves; 0 if no position counts.

        Args:
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
    """Calls `on_step`, and remembers the last moment to call it again."""

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
    """A class of samplers with the options of `Verification` beside its own.

    Args:
        kind: the class, or a partial of it.
    """

    also = Verification  # a class whose options it takes too

    def __init__(self, kind: Callable[..., Rereader]):
        self.kind = kind
        self.__name__ = getattr(kind, "__name__", None) or kind.func.__name__
        self.__signature__ = merged(kind, Verification)

    def __call__(self, **options: Any) -> Any:
        names = {field.name for field in fields(Verification)}
        verification = Verification(**{name: options.pop(name) for name in names & options.keys()})
        sampler = self.kind(**options)
        return sampler if verification.candidates == 1 else Verified(sampler, verification)
