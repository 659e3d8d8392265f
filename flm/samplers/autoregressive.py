"""Sampling from left to right, one token after the other. B batch, L length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flm.posterior import TokenPosterior
from flm.ranges import Bounded, Count, PositiveShare, TokenId
from flm.samplers.canvas import Canvas
from flm.samplers.flow import Moment, OnStep, check_steps
from flm.samplers.policy import Policy, Shaping


class NextToken(Protocol):
    """What the sampler calls; see `flm.models.causal.LeftToRight`.

    `new_cache(L)` makes a cache for L positions. `next_token` adds tokens (B, n) to it and predicts the token after them,
    (B, 1); with n = 0 and an empty cache, the first token.
    """

    def new_cache(self, capacity: int) -> Sequence[Any]: ...

    def next_token(self, tokens: Tensor, cache: Sequence[Any]) -> TokenPosterior: ...


@dataclass(frozen=True)
class Written(Moment):
    """The moment after one token was written.

    Attributes:
        tau: the position of the token divided by L.
        posterior: (B, 1), from which it was drawn.
        so_far: (B, L) tokens, with placeholders (0) at editable positions to come.
    """

    so_far: Tensor

    def tokens(self) -> Tensor:
        return self.so_far


class AutoregressiveSampler(Policy):
    """Draws the editable tokens of a canvas from left to right; draws are made in float64.

    A token is written with the knowledge of given tokens before it, but not of those after it: the model cannot look ahead, so
    text in a hole need not lead up to the given text behind it.

    There is one network evaluation for each position that is editable in any sequence, L for a blank canvas. Keys and values
    are cached, so each evaluation reads only the tokens since the last one. `steps` has no effect; all samplers take it.
    `steps_are_fixed` says so to code that compares numbers of steps.

    It has no temperature_end, since tokens are not drawn at levels of noise.

    Args:
        temperature, frequency_penalty, top_k, top_p, suppress, begin_suppress: as in Policy.
    """

    steps_are_fixed = True

    def __init__(
        self,
        temperature: Bounded = 1.0,
        frequency_penalty: Bounded = 0.0,
        top_k: Count | None = None,
        top_p: PositiveShare | None = None,
        suppress: Sequence[TokenId] = (),
        begin_suppress: Sequence[TokenId] = (),
    ):
        super().__init__(temperature, None, frequency_penalty, top_k, top_p, suppress, begin_suppress)

    @torch.no_grad()
    def __call__(
        self, denoiser: NextToken, canvas: Canvas, steps: int, generator: torch.Generator, on_step: OnStep = None
    ) -> Tensor:
        check_steps(steps)
        tokens, length = canvas.tokens.clone(), canvas.tokens.shape[1]
        cache = denoiser.new_cache(length)
        columns = canvas.editable.any(0).nonzero()[:, 0].tolist()
        shaping, read, written = Shaping(self, canvas), 0, torch.zeros_like(canvas.editable)
        for index, column in enumerate(columns):
            here = torch.zeros_like(written)
            here[:, column] = True
            shaping.stands(tokens, written)
            posterior = shaping(denoiser.next_token(tokens[:, read:column], cache), column / length, here)
            drawn = posterior.draw(generator)[:, 0]
            written = written | here
            tokens[:, column] = torch.where(canvas.editable[:, column], drawn, tokens[:, column])
            read = column
            if on_step is not None:
                on_step(Written(index, len(columns), column / length, posterior, canvas, tokens.clone()))
        return tokens
