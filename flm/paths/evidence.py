"""The evidence of a noised position about its own token, in closed form (derived in docs/clock.md).

With x_t = (1 - t) n + t onehot(y) the likelihood of token k is proportional to exp(t x_k / (1 - t)^2), whatever the other
positions are. Hence

    log P(y = k | x)  =  log P(k | the other positions)  +  t x_k / (1 - t)^2  +  const,

and without context the first term is log pi_k, the token frequencies. `LocalEvidence` holds the logits log pi + t x / (1 - t)^2
of this context-free decoder. A network may read their posterior through a table and add them to its own logits.

A flow map's endpoint is an average of denoisers. With m = t / (1 - t) the weight dt / (1 - t)^2 is dm, so

    delta_{s,t}(x)  =  mean over m, uniform from m_s to m_t, of D along the trajectory from x.

If one neglects how D moves x along the way, the logits of the context-free D at m are log pi + m x / (1 - s). Their mean is
log pi + (m_s + m_t) / 2 x / (1 - s), which is called the evidence of x_s *toward* t; at t = s it is the evidence above. At
s = 0 there is no evidence in x, but the evidence toward t still shows which tokens the noise favours (docs/clock.md compares
it with the exact map).

In training, V numbers for all positions never exist at once: a state is a recipe that every reader, and the backward pass,
evaluates anew. A sampler holds its x. B batch, L length, N = B * L, V vocabulary, D width, n tokens of a chunk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flm.draws import mix_seed
from flm.posterior import CHUNK_ELEMENTS, chunks

CELL_ELEMENTS = 2**20  # noise drawn from one seed; chunks need not begin where such a cell does
NEARLY_CLEAN = 1e-3  # least value of 1 - t; below it the evidence leaves no doubt anyway


class FullState(Protocol):
    """x_t at N positions."""

    def chunk(self, part: slice) -> Tensor:
        """(n, V) of a slice of the flattened token axis; the caller may overwrite it."""
        ...


@dataclass(frozen=True)
class Held:
    """x (N, V) itself."""

    x: Tensor

    def chunk(self, part: slice) -> Tensor:
        return self.x[part].clone()


@dataclass(frozen=True)
class Noised:
    """(1 - t) n + t onehot(token). Every reading gives the same numbers, however it is cut into chunks.

    Attributes:
        tokens, t: (N,).
        seeds: one for each sequence.
    """

    tokens: Tensor
    t: Tensor
    vocab_size: int
    seeds: Sequence[int]
    dtype: torch.dtype = torch.float32

    def chunk(self, part: slice) -> Tensor:
        t, tokens = self.t[part, None].to(self.dtype), self.tokens[part, None]
        return self._noise(part).mul_(1 - t).scatter_add_(1, tokens, t)

    def _noise(self, part: slice) -> Tensor:
        length, device = len(self.tokens) // len(self.seeds), self.tokens.device
        size = max(1, CELL_ELEMENTS // self.vocab_size)
        out = torch.empty(part.stop - part.start, self.vocab_size, device=device, dtype=self.dtype)
        generator = torch.Generator(device)
        for row in range(part.start // length, -(-part.stop // length)):
            start = row * length
            first, last = max(part.start - start, 0), min(part.stop - start, length)
            for begin in range(first // size * size, last, size):
                generator.manual_seed(mix_seed(self.seeds[row], begin))
                end = min(begin + size, length)
                cell = torch.randn(end - begin, self.vocab_size, generator=generator, device=device, dtype=self.dtype)
                low, high = max(first, begin), min(last, end)
                out[start + low - part.start : start + high - part.start] = cell[low - begin : high - begin]
        return out


@dataclass(frozen=True)
class Stepped:
    """x + fraction (point - x): a state after a step toward predicted points of the simplex.

    Attributes:
        state: x.
        point: gives probability vectors (n, V) chunk by chunk.
        fraction: (N,) of the way.
    """

    state: FullState
    point: FullState
    fraction: Tensor

    def chunk(self, part: slice) -> Tensor:
        x = self.state.chunk(part)
        fraction = self.fraction[part, None].to(x.dtype)
        return x.mul_(1 - fraction).addcmul_(self.point.chunk(part).to(x.dtype), fraction)


@dataclass(frozen=True)
class Pinned:
    """Points of the simplex, replaced by onehot(tokens) where mask is true; tokens and mask are (N,)."""

    point: FullState
    tokens: Tensor
    mask: Tensor

    def chunk(self, part: slice) -> Tensor:
        mask = self.mask[part, None]
        points = self.point.chunk(part).masked_fill(mask, 0.0)
        return points.scatter_add_(1, self.tokens[part, None], mask.to(points.dtype))


@dataclass(frozen=True)
class LocalEvidence:
    """log pi + t x / (1 - t)^2 as logits.

    Attributes:
        state: x.
        t: (N,) physical times, which may differ between positions.
        log_prior: (V,) log pi.
        toward: (N,) physical times >= t, for the evidence toward the end of a jump; None: t itself.
    """

    state: FullState
    t: Tensor
    log_prior: Tensor
    toward: Tensor | None = None

    def chunk(self, part: slice) -> Tensor:
        ratio = _ratio(self.t[part, None])
        if self.toward is not None:
            ratio = (ratio + _ratio(self.toward[part, None])) / 2
        gain = ratio / (1 - self.t[part, None]).clamp_min(NEARLY_CLEAN)
        x = self.state.chunk(part)
        return x.mul_(gain.to(x.dtype)).add_(self.log_prior.to(x.dtype))

    def probabilities(self) -> Iterator[tuple[slice, Tensor]]:
        """The context-free posterior (n, V) of slices of the token axis."""
        for part in chunks(len(self.t), len(self.log_prior), self.t.device):
            yield part, torch.softmax(self.chunk(part), -1)


def noised(tokens: Tensor, t: Tensor, seeds: Sequence[int], log_prior: Tensor) -> FullState:
    """x_t of tokens (B, L) at times t (B, L), in the precision of log_prior (V,); one seed for each sequence."""
    state = Noised(tokens.reshape(-1), t.reshape(-1), len(log_prior), seeds, log_prior.dtype)
    return kept(state, tokens.numel(), log_prior)


def kept(state: FullState, count: int, log_prior: Tensor) -> FullState:
    """The same state of `count` positions, held if all of it fits into one chunk, since it is read several times."""
    device = log_prior.device.type
    if count * len(log_prior) > CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS["cpu"]):
        return state
    return Held(state.chunk(slice(0, count)))


def _ratio(t: Tensor) -> Tensor:
    """m = t / (1 - t), limited by NEARLY_CLEAN."""
    return t / (1 - t).clamp_min(NEARLY_CLEAN)


def embed_evidence(evidence: LocalEvidence, table: Tensor) -> Tensor:
    """softmax(evidence) @ table, (N, D): the expected row of the table. Differentiable by the table only."""
    return _Embed.apply(table, evidence)


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table, evidence):
        ctx.evidence, ctx.like = evidence, table
        view = table.new_empty(len(evidence.t), table.shape[1])
        with torch.autocast(table.device.type, enabled=False):
            for part, p in evidence.probabilities():
                view[part] = p.to(table.dtype) @ table
        return view

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        to_table = torch.zeros_like(ctx.like)
        with torch.autocast(grad.device.type, enabled=False):
            for part, p in ctx.evidence.probabilities():
                to_table.addmm_(p.to(to_table.dtype).T, grad[part].to(to_table.dtype))
        return to_table, None
