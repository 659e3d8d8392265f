"""A sampler of the embedding flow: from noise to token embeddings, and from these to tokens.

B batch, L length, D width, V vocabulary.
"""

from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from flm.golf.linear_embedding import corrupt, toward
from flm.posterior import TokenPosterior
from flm.samplers.canvas import Canvas
from flm.samplers.flow import Moment, OnStep, check_steps
from flm.samplers.policy import Policy, Shaping


class EmbeddingDenoiser(Protocol):
    """The network as the sampler calls it, with a state (B, L, D), times (B,) and the previous estimate (at first None).

    It returns an estimate z1 (B, L, D) of the clean state. The logits of an estimate are z1 @ table^T + bias.

    Attributes:
        table: (V, D), the embeddings.
        bias: (V,); None: no bias.
    """

    table: Tensor
    bias: Tensor | None

    def __call__(self, state: Tensor, t: Tensor, estimate: Tensor | None) -> Tensor: ...


class EmbeddingFlowSampler(Policy):
    """Goes from noise at t = 0 to tokens at t = 1 in N network evaluations at evenly spaced times. Given tokens stay clean.

    The flow moves towards the network's estimate of the embedding, not towards the mean of a distribution over tokens.
    Therefore the policy acts only when tokens are read off, and temperature, top_k and top_p need read_out="categorical".

    Args:
        solver: "euler" follows the velocity (z1 - x) / (1 - t). "zigzag" adds fresh noise to z1 for the next time, as
            consistency models sample (arXiv 2303.01469). With one step both are the same.
        read_out: how an estimate becomes tokens: "argmax" of its logits; the "nearest" embedding, which is the same if all
            embeddings have one length and there is no bias; or "categorical", drawn from the softmax of the logits.
        clamp: steps towards the embeddings of the tokens that are read off, in place of the estimate (arXiv 2205.14217).

    Raises:
        ValueError: temperature, top_k or top_p is set, but read_out is not "categorical".
    """

    def __init__(
        self,
        solver: Literal["euler", "zigzag"] = "euler",
        read_out: Literal["argmax", "nearest", "categorical"] = "argmax",
        clamp: bool = False,
        **policy: Any,
    ):
        super().__init__(**policy)
        # temperature 0 draws the most probable token, as argmax does
        idle = (None, 1.0, 0) if read_out == "argmax" else (None, 1.0)
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
