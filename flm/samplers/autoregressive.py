"""Writing from left to right, one token after the other. B batch, L length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flm.posterior import TokenPosterior
from flm.ranges import Count, Positive, PositiveShare
from flm.samplers.canvas import Canvas
from flm.samplers.flow import Moment, OnStep, check_steps


class NextToken(Protocol):
    """What the sampler asks: a cache for L positions, and the prediction (B, 1) of the token after those read so far.

    next_token reads further tokens (B, n); none at all is the prediction of the first.
    """

    def new_cache(self, capacity: int) -> Sequence[Any]: ...

    def next_token(self, tokens: Tensor, cache: Sequence[Any]) -> TokenPosterior: ...


@dataclass(frozen=True)
class Written(Moment):
    """One token has been written.

    `tau` is the share of the L positions that were known before it, `posterior` (B, 1) what it was drawn from, `so_far`
    (B, L) what stands now: placeholders (0) at editable positions to come.
    """

    so_far: Tensor

    def tokens(self) -> Tensor:
        return self.so_far


class AutoregressiveSampler:
    """Draws the editable tokens of a canvas from left to right; draws are made in float64.

    Given tokens stay, and what comes after them is written knowing them. What comes before them is not: such a model
    cannot look ahead, so a hole in front of given text does not lead up to it.

    It takes one network evaluation for each position that is editable in any sequence, L for a blank canvas. Keys and
    values are cached, so each reads only the tokens since the one before: one, or a whole stretch of given ones.
    `steps` changes nothing: it is there because all samplers take it, and `steps_are_fixed` tells who compares numbers of
    steps that there is only one.

    Args:
        temperature: divides the logits.
        top_k: draw among the k most probable tokens; None: among all.
        top_p: draw among the fewest most probable tokens whose mass, at this temperature and within top_k, reaches this
            share in (0, 1]; None: among all.
    """

    steps_are_fixed = True

    def __init__(self, temperature: Positive = 1.0, top_k: Count | None = None, top_p: PositiveShare | None = None):
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    @torch.no_grad()
    def __call__(
        self, denoiser: NextToken, canvas: Canvas, steps: int, generator: torch.Generator, on_step: OnStep = None
    ) -> Tensor:
        check_steps(steps)
        tokens, length = canvas.tokens.clone(), canvas.tokens.shape[1]
        cache = denoiser.new_cache(length)
        columns = canvas.editable.any(0).nonzero()[:, 0].tolist()
        read = 0
        for index, column in enumerate(columns):
            posterior = denoiser.next_token(tokens[:, read:column], cache).tempered(self.temperature)
            drawn = posterior.draw(generator, self.top_k, self.top_p)[:, 0]
            tokens[:, column] = torch.where(canvas.editable[:, column], drawn, tokens[:, column])
            read = column
            if on_step is not None:
                on_step(Written(index, len(columns), column / length, posterior, canvas, tokens.clone()))
        return tokens
