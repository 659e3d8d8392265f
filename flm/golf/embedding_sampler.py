"""Samplers of the embedding flow: from noise to token embeddings, and from there to tokens. B batch, L length, D width."""

from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from flm.golf.linear_embedding import corrupt, toward
from flm.posterior import TokenPosterior
from flm.samplers.canvas import Canvas
from flm.samplers.flow import Moment, OnStep, check_steps
from flm.samplers.policy import Policy, Shaping


class EmbeddingDenoiser(Protocol):
    """What the sampler asks: the embeddings (V, D) and logits of an estimate, and the estimate itself.

    Called with a state (B, L, D), a time (B,) and the estimate before (None at first), gives the clean state z1 (B, L, D).
    """

    table: Tensor
    bias: Tensor | None

    def __call__(self, state: Tensor, t: Tensor, estimate: Tensor | None) -> Tensor: ...


class EmbeddingFlowSampler(Policy):
    """Noise at t = 0 to tokens at t = 1 in N network evaluations on even times; given tokens stay clean throughout.

    The flow moves towards an estimate of the embedding, not towards the mean of a distribution: the policy is of the tokens
    that are read off, and temperature, top_k and top_p tell only where these are drawn.

    Args:
        solver: "euler" follows the velocity (z1 - x) / (1 - t); "zigzag" noises z1 anew to the next time, with fresh noise,
            as consistency models sample (arXiv 2303.01469). One step is the same with both.
        read_out: tokens of the last estimate: "argmax" of the logits z1 . e, "nearest" embedding (the same where all
            have one length), or "categorical", drawn from the softmax.
        clamp: after every step, put the embeddings of its tokens in place of the estimate (arXiv 2205.14217).
    """

    def __init__(
        self,
        solver: Literal["euler", "zigzag"] = "euler",
        read_out: Literal["argmax", "nearest", "categorical"] = "argmax",
        clamp: bool = False,
        **policy: Any,
    ):
        super().__init__(**policy)
        idle = (None, 1.0, 0) if read_out == "argmax" else (None, 1.0)  # the most probable token is what it reads
        for name in ("temperature", "temperature_end", "top_k", "top_p"):
            if read_out != "categorical" and policy.get(name) not in idle:
                raise ValueError(f"sampling.{name}={policy[name]} is for sampling.read_out=categorical, not {read_out}")
        self.zigzag, self.read_out, self.clamp = solver == "zigzag", read_out, clamp

    @torch.no_grad()
    def __call__(
        self,
        denoiser: EmbeddingDenoiser,
        canvas: Canvas,
        steps: int,
        generator: torch.Generator,
        on_step: OnStep = None,
    ) -> Tensor:
        check_steps(steps)
        table = denoiser.table
        clean, given = table[canvas.tokens], ~canvas.editable

        def noise() -> Tensor:
            return torch.randn(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)

        def at(time: float) -> Tensor:
            return torch.full((len(clean),), time, device=clean.device, dtype=torch.float32)

        shaping = Shaping(self, canvas)
        state, estimate = corrupt(clean, noise(), at(0.0), given), None
        for i in range(steps):
            t, t_next = i / steps, (i + 1) / steps
            estimate = torch.where(given[..., None], clean, denoiser(state, at(t), estimate))
            posterior = shaping(self._posterior(estimate, table, denoiser.bias), t)
            shaping.guessed(posterior)
            if on_step is not None:
                on_step(Moment(i, steps, t, posterior, canvas))
            if i == steps - 1:
                break
            goal = table[self._tokens(posterior, canvas, generator)] if self.clamp else estimate
            moved = corrupt(goal, noise(), at(t_next), given) if self.zigzag else toward(state, goal, t, t_next)
            state = torch.where(given[..., None], clean, moved)
        return self._tokens(posterior, canvas, generator)

    def _posterior(self, estimate: Tensor, table: Tensor, bias: Tensor | None) -> TokenPosterior:
        if self.read_out == "nearest":  # |z - e|^2 = |z|^2 - 2 (z . e - |e|^2 / 2)
            bias = -table.square().sum(-1) / 2
        return TokenPosterior(estimate, table, bias)

    def _tokens(self, posterior: TokenPosterior, canvas: Canvas, generator: torch.Generator) -> Tensor:
        found = posterior.draw(generator) if self.read_out == "categorical" else posterior.argmax()
        return canvas.fill(found)
