"""Noised sequences on the KL geodesic, computed chunk by chunk, and the features by which a network reads them.

The logits m = log E + signal of all N = B * L positions do not exist at once in training. Noise is a function of a seed, so a
state is a recipe that every reader, and the backward pass, evaluates anew. Only a sampler that integrates the flow holds its m,
V numbers a position (`Carried`). B batch, L length, V vocabulary, D width, n tokens of a chunk.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from flm.kl_flow.geodesic import Geodesic, log_evidence, log_noise_
from flm.outputs import Output
from flm.posterior import TokenPosterior, chunks


class Logits(Protocol):
    """m at N positions: slices of the flattened token axis, each with its (n, V), which the reader may overwrite."""

    def chunks(self) -> Iterator[tuple[slice, Tensor]]: ...


@dataclass(frozen=True)
class Noise:
    """log E, the prior. Every reading gives the same numbers.

    Attributes:
        seeds: one for each sequence.
    """

    seeds: Sequence[int]
    length: int
    path: Geodesic
    device: torch.device
    dtype: torch.dtype

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        size, length = self.path.vocab_size, self.length
        generator = torch.Generator(self.device)
        for rows in chunks(len(self.seeds), length * size, self.device):
            # a chunk is several sequences or a part of one, so where a sequence is cut does not depend on the others
            inside = list(chunks(length, size, self.device))
            for part in inside if len(inside) > 1 else [slice(0, length)]:
                seeds = self.seeds[rows]
                m = torch.empty(len(seeds), part.stop - part.start, size, device=self.device, dtype=self.dtype)
                for seed, row in zip(seeds, m, strict=True):
                    if part.start == 0:
                        generator.manual_seed(seed)
                    log_noise_(row, self.path.concentration, generator)
                start = rows.start * length + part.start
                yield slice(start, start + m[..., 0].numel()), m.flatten(0, 1)


@dataclass(frozen=True)
class Signalled:
    """base + s onehot(token); tokens (B, L), signal s (B,)."""

    base: Logits
    tokens: Tensor
    signal: Tensor

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        tokens, signal = self.tokens.reshape(-1), per_token(self.signal, self.tokens.shape)
        for part, m in self.base.chunks():
            yield part, m.scatter_add_(1, tokens[part, None], signal[part, None].to(m.dtype))


@dataclass(frozen=True)
class Moved:
    """base + gain * p, with a prediction p (B, L) and gain (B,): the flow with constant p, or a jump."""

    base: Logits
    posterior: Output
    gain: Tensor

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        gain = per_token(self.gain, self.posterior.shape)
        for part, m in self.base.chunks():
            yield part, m.addcmul_(self.posterior.chunk(part).to(m.dtype), gain[part, None].to(m.dtype))


class Carried:
    """m itself, (N, V), changed in place."""

    def __init__(self, start: Logits, count: int, vocab_size: int, device: torch.device, dtype: torch.dtype):
        self.m = torch.empty(count, vocab_size, device=device, dtype=dtype)
        for part, m in start.chunks():
            self.m[part] = m

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        for part in chunks(*self.m.shape, self.m.device):
            yield part, self.m[part].clone()

    def move(self, posterior: TokenPosterior, gain: float, keep: float = 1.0) -> None:
        """m <- keep * m + gain * p, shifted so that the largest entry of a position is 0, which keeps digits."""
        for part, logits in posterior.logit_chunks():
            m = self.m[part].mul_(keep).add_(logits.softmax(-1).to(self.m.dtype), alpha=gain)
            m.sub_(m.amax(-1, keepdim=True))


@dataclass(frozen=True)
class State:
    """Sequences at some times of the path, with their clean positions.

    Attributes:
        logits: m.
        t: (B,) physical times, float64.
        tokens: (B, L), read where `clean`.
        clean: (B, L) bool, positions that are exactly the one-hot vector of their token; None: none.
    """

    logits: Logits
    t: Tensor
    tokens: Tensor
    clean: Tensor | None = None

    def at(self, logits: Logits, t: Tensor) -> "State":
        """The same sequences with other logits and times."""
        return replace(self, logits=logits, t=t)


def corrupt(
    tokens: Tensor,
    t: Tensor,
    path: Geodesic,
    seeds: Sequence[int],
    clean: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> State:
    """x_t of tokens (B, L) at physical times t (B,), with a seed for each; positions `clean` (B, L) have no noise."""
    noise = Noise(seeds, tokens.shape[1], path, tokens.device, dtype)
    return State(Signalled(noise, tokens, path.signal(t)), t, tokens, clean)


def per_token(values: Tensor, shape: torch.Size) -> Tensor:
    """Values (B,) repeated for each token, (N,)."""
    return values.repeat_interleave(shape[1])


# What a network reads --------------------------------------------------------------------------------------------------


def simplex_point(m: Tensor, t: Tensor, path: Geodesic) -> Tensor:
    """x_t itself (arXiv 2411.16821)."""
    return torch.softmax(m.mul_((1 - t).to(m.dtype)), -1)


def sharpened_point(m: Tensor, t: Tensor, path: Geodesic) -> Tensor:
    """x_t^(1/(1-t)), normalised, in which the noise has unit temperature at all times."""
    return torch.softmax(m, -1)


def centred_logits(m: Tensor, t: Tensor, path: Geodesic) -> Tensor:
    """l_t with mean 0, which keeps digits that the simplex would lose."""
    return m.mul_((1 - t).to(m.dtype)).sub_(m.mean(-1, keepdim=True))


def own_posterior(m: Tensor, t: Tensor, path: Geodesic) -> Tensor:
    """The posterior of the token given its own position alone, for equal frequencies."""
    return torch.softmax(log_evidence(m, path.signal(t).to(m.dtype), path.concentration), -1)


Feature = Callable[[Tensor, Tensor, Geodesic], Tensor]  # m (n, V), t (n, 1) -> (n, V)
# The values of `algo.features`.
FEATURES: dict[str, Feature] = {
    "simplex": simplex_point,
    "sharpened": sharpened_point,
    "log": centred_logits,
    "posterior": own_posterior,
}


def clean_values(features: str, path: Geodesic) -> tuple[float, float]:
    """The features of a clean position, at its token and elsewhere: those of the target itself."""
    if features == "log":
        return path.gap * (1 - 1 / path.vocab_size), -path.gap / path.vocab_size
    return 1.0, 0.0


def feature_chunks(state: State, features: str, path: Geodesic) -> Iterator[tuple[slice, Tensor]]:
    """Features (n, V) of slices of the flattened token axis."""
    t, tokens = per_token(state.t, state.tokens.shape)[:, None], state.tokens.reshape(-1, 1)
    clean = None if state.clean is None else state.clean.reshape(-1, 1)
    at_token, elsewhere = clean_values(features, path)
    for part, m in state.logits.chunks():
        x = FEATURES[features](m, t[part], path)
        if clean is not None:
            own = torch.where(clean[part], at_token, x.gather(1, tokens[part]))
            x = x.masked_fill_(clean[part], elsewhere).scatter_(1, tokens[part], own.to(x.dtype))
        yield part, x


def embed(state: State, table: Tensor, features: str, path: Geodesic) -> Tensor:
    """The view (B, L, D) of a state's features through an input table (V, D), differentiable by the table only.

    The backward pass computes the state again instead of keeping (B, L, V), so the state must not change in between.
    """
    return _Embed.apply(table, state, features, path)


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table, state, features, path):
        ctx.state, ctx.features, ctx.path = state, features, path
        ctx.like = table
        view = table.new_empty(state.tokens.numel(), table.shape[1])
        with torch.autocast(table.device.type, enabled=False):
            for part, x in feature_chunks(state, features, path):
                view[part] = x.to(table.dtype) @ table
        return view.view(*state.tokens.shape, table.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        flat = grad.reshape(-1, grad.shape[-1])
        to_table = torch.zeros_like(ctx.like)
        with torch.autocast(grad.device.type, enabled=False):
            for part, x in feature_chunks(ctx.state, ctx.features, ctx.path):
                to_table.addmm_(x.to(to_table.dtype).T, flat[part].to(to_table.dtype))
        return to_table, None, None, None
