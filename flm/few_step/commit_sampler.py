"""Rounds of a token map: confident tokens are written, and the rest starts again from fresh noise (arXiv 2609.15903)."""

from typing import Any

import torch
from torch import Tensor

from flm.paths.gaussian import Noise, State, embed, noise_for, where
from flm.posterior import TokenPosterior
from flm.ranges import Share
from flm.samplers.canvas import Canvas
from flm.samplers.flow import FlowDenoiser, Moment, OnStep, StateSampler, check_steps
from flm.samplers.policy import Shaping


def committed(posterior: TokenPosterior, chosen: Tensor, left: Tensor, rounds: int, sure_from: float) -> Tensor:
    """Which of the open positions `left` (B, L) bool write their tokens `chosen` (B, L) in this round.

    These are all with a probability of at least `sure_from`, and at least the ceil(R / rounds) most probable of R.

    Args:
        rounds: still to come, this one included.
    """
    sure = posterior.log_prob(chosen).exp().masked_fill(~left, -1.0)
    rank = sure.argsort(dim=1, descending=True, stable=True).argsort(1)
    quota = -(-left.sum(1) // rounds)
    return left & ((sure >= sure_from) | (rank < quota[:, None]))


class CommitSampler(StateSampler):
    """In each round the map reads written tokens, and noise elsewhere; then the most confident tokens are written.

    With R open positions at least ceil(R / rounds left) are written, so the last round writes all. If none is open, it stops.

    Args:
        commit: probability from which a token is written at once.
        draw: draw tokens from the map's output instead of taking the most probable ones. A well trained map needs no draw,
            since the noise determines its tokens.
    """

    def __init__(self, commit: Share = 0.9, draw: bool = False, **policy: Any):
        super().__init__(**policy)
        self.commit, self.draw = commit, draw

    @torch.no_grad()
    def integrate(
        self,
        denoiser: FlowDenoiser,
        canvas: Canvas,
        steps: int,
        state: State,
        generator: torch.Generator,
        on_step: OnStep = None,
        law: Noise | None = None,
    ) -> Tensor:
        check_steps(steps)
        law = noise_for(denoiser.tables) if law is None else law
        tokens, left, shaping = canvas.tokens, canvas.editable, Shaping(self, canvas)
        times = torch.zeros(len(tokens), device=tokens.device)
        for i in range(steps):
            seen = where(left, state, embed(tokens, denoiser.tables))
            output = shaping(denoiser(seen, times), i / steps)
            if on_step is not None:
                on_step(Moment(i, steps, i / steps, output, canvas))
            chosen = output.draw(generator) if self.draw else output.argmax()
            written = committed(output, chosen, left, steps - i, self.commit)
            tokens, left = torch.where(written, chosen, tokens), left & ~written
            if not left.any():
                break
            shaping.stands(tokens, ~left)
            state = law.sample(*tokens.shape, generator)
        return tokens
