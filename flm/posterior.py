"""The vocabulary end of a network, reduced in chunks of tokens so that no (B, L, V) tensor is ever built.

A prediction is kept as final hidden states and the output table; logits = softcap(hidden @ table^T + bias) / temperature
exist for one chunk of tokens at a time, forward and backward. B batch, L length, D width, V vocabulary, N = B * L.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


# Logits alive at once. 64 MB of fp32 keeps a CPU's matrix products long enough to be efficient; a GPU wants longer ones.
CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**28}


def chunks(num_tokens: int, vocab_size: int, device: torch.device) -> Iterator[slice]:
    """Slices of the token axis that hold about CHUNK_ELEMENTS logits each (at least one token)."""
    size = max(1, CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["cpu"]) // vocab_size)
    return (slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size))


@dataclass(frozen=True)
class TokenPosterior:
    """A probability vector over V tokens at every position, held as what produces it.

    Attributes:
        hidden: (B, L, D) final hidden states.
        table: (V, D) output table.
        bias: (V,) or None.
        softcap: c in c * tanh(logits / c); None for none.
        temperature: divides the (softcapped) logits; > 0.
    """

    hidden: Tensor
    table: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    temperature: float = 1.0

    @property
    def vocab_size(self) -> int:
        return self.table.shape[0]

    def tempered(self, temperature: float) -> "TokenPosterior":
        """The same prediction with its logits divided by `temperature` (> 0)."""
        if not temperature > 0:
            raise ValueError(f"sampling.temperature must be above 0, not {temperature}")
        return replace(self, temperature=self.temperature * temperature)

    def detach(self) -> "TokenPosterior":
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, hidden=self.hidden.detach(), table=self.table.detach(), bias=bias)

    def rows(self, index: slice) -> "TokenPosterior":
        """The posterior of some sequences of the batch."""
        return replace(self, hidden=self.hidden[index])

    # Reductions with gradient -----------------------------------------------------------------------------------------

    def cross_entropy(self, target: "Tensor | Mixture", weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted token cross-entropy, -sum_k q_k log p_k.

        Args:
            target: token ids (B, L), or a Mixture of posteriors (soft target q; no gradient flows into it).
            weight: (B, L), constant; usually 1 / number of tokens that count.

        Returns:
            The weighted sum over tokens, a differentiable scalar, and the unweighted cross-entropy of each token (B, L) in
            nats, detached.
        """
        bias = self.bias if self.bias is not None else self.hidden.new_zeros(self.vocab_size)
        total, per_token = _ChunkedCrossEntropy.apply(
            self.hidden, self.table, bias, self, target, weight, torch.is_grad_enabled()
        )
        return total, per_token

    # Reductions without gradient --------------------------------------------------------------------------------------

    @torch.no_grad()
    def expected(self, tables: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Expected row of each table: softmax(logits) @ W_k, (B, L, d_k) in fp32 or better."""
        return self._reduce(lambda p: tuple(p.to(w.dtype) @ w for w in tables), probabilities=True)

    @torch.no_grad()
    def argmax(self) -> Tensor:
        """Most probable token (B, L)."""
        return self._reduce(lambda logits: (logits.argmax(-1),))[0]

    @torch.no_grad()
    def log_prob(self, tokens: Tensor) -> Tensor:
        """Log-probability (B, L) in nats of the given tokens (B, L)."""
        flat = tokens.reshape(-1)
        pieces = [
            logits.gather(1, flat[part, None])[:, 0] - logits.logsumexp(-1) for part, logits in self._logit_chunks()
        ]
        return torch.cat(pieces).view_as(tokens)

    @torch.no_grad()
    def entropy(self) -> Tensor:
        """Entropy (B, L) in nats."""
        return self._reduce(lambda p: (torch.special.entr(p).sum(-1),), probabilities=True)[0]

    @torch.no_grad()
    def draw(self, generator: torch.Generator, top_k: int | None = None, top_p: float | None = None) -> Tensor:
        """One token (B, L) drawn at every position, in float64 by inversion.

        Float32 probabilities (or float32 Gumbel noise) silently act as a lower temperature: rare tokens are never drawn
        (arXiv 2409.02908).

        Args:
            top_k: keep the k most probable tokens; None keeps all.
            top_p: keep the smallest set of most probable tokens whose mass reaches top_p in (0, 1]; None keeps all.
        """

        def pick(logits: Tensor) -> tuple[Tensor]:
            p = truncate(logits.double().softmax(-1), top_k, top_p)
            u = torch.rand(p.shape[0], 1, generator=generator, dtype=torch.float64, device=p.device)
            cumulative = p.cumsum(-1)
            # u < 1 strictly, so the index found always has positive probability
            return (torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)[:, 0].clamp_(max=p.shape[1] - 1),)

        return self._reduce(pick)[0]

    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """All probabilities (B, L, V): for small vocabularies, tests and figures only."""
        return self._reduce(lambda p: (p,), probabilities=True)[0]

    # Chunks -----------------------------------------------------------------------------------------------------------

    def _logit_chunks(self) -> Iterator[tuple[slice, Tensor]]:
        hidden = self.hidden.reshape(-1, self.hidden.shape[-1])
        table, bias = compute_copy(hidden, self.table, self.bias)
        for part in chunks(hidden.shape[0], self.vocab_size, hidden.device):
            logits, _ = softcapped_logits(hidden[part].to(table.dtype), table, bias, self.softcap)
            yield part, logits / self.temperature if self.temperature != 1.0 else logits

    def probability_chunk(self, part: slice) -> Tensor:
        """Probabilities (n, V) of one slice of the flattened token axis."""
        hidden = self.hidden.reshape(-1, self.hidden.shape[-1])[part]
        table, bias = compute_copy(hidden, self.table, self.bias)
        logits, _ = softcapped_logits(hidden.to(table.dtype), table, bias, self.softcap)
        return torch.softmax(logits / self.temperature, -1)

    def _reduce(self, function, probabilities: bool = False) -> tuple[Tensor, ...]:
        pieces = [
            function(torch.softmax(logits, -1) if probabilities else logits) for _, logits in self._logit_chunks()
        ]
        shape = self.hidden.shape[:-1]
        return tuple(torch.cat(column).view(*shape, *column[0].shape[1:]) for column in zip(*pieces, strict=True))


@dataclass(frozen=True)
class Mixture:
    """A convex combination sum_i w_i p_i of posteriors over the same tokens, w_i >= 0 and sum_i w_i = 1.

    weights[i] is (B,): one weight a sequence.
    """

    weights: tuple[Tensor, ...]
    posteriors: tuple[TokenPosterior, ...]

    @torch.no_grad()
    def probability_chunk(self, part: slice) -> Tensor:
        """Probabilities (n, V) of one slice of the flattened token axis."""
        total: Tensor | None = None
        for weight, posterior in zip(self.weights, self.posteriors, strict=True):
            length = posterior.hidden.shape[1]
            w = weight.repeat_interleave(length)[part, None]
            p = posterior.probability_chunk(part)
            p = p * w.to(p.dtype)
            total = p if total is None else total.add_(p)
        assert total is not None
        return total


def softcapped_logits(
    hidden: Tensor, table: Tensor, bias: Tensor | None, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Logits (n, V) in fp32 or better, and tanh(raw / softcap), which the backward pass needs (None without softcap)."""
    with torch.autocast(hidden.device.type, enabled=False):
        raw = hidden @ table.T
    raw = raw.float() if raw.dtype in (torch.bfloat16, torch.float16) else raw
    if bias is not None:
        raw = raw.add_(bias)
    if softcap is None:
        return raw, None
    squashed = raw.div_(softcap).tanh_()
    return squashed * softcap, squashed


def compute_copy(hidden: Tensor, table: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Table and bias in the dtype the matrix products run in: autocast's where it is on, else the table's own."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        table = table.to(torch.get_autocast_dtype(device))
    return table, bias


def truncate(p: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Probabilities (n, V) with everything outside top-k and top-p set to 0 (not renormalised)."""
    if top_k is not None:
        if top_k < 1:
            raise ValueError(f"sampling.top_k must be at least 1, not {top_k}")
        kept = torch.topk(p, min(top_k, p.shape[-1]), dim=-1)
        p = torch.zeros_like(p).scatter_(-1, kept.indices, kept.values)
    if top_p is not None:
        if not 0 < top_p <= 1:
            raise ValueError(f"sampling.top_p must be in (0, 1], not {top_p}")
        ordered, order = p.sort(dim=-1, descending=True)
        mass_before = ordered.cumsum(-1) - ordered
        keep = mass_before < top_p * ordered.sum(-1, keepdim=True)
        p = torch.zeros_like(p).scatter_(-1, order, ordered * keep)
    return p


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy whose gradient is formed in the forward pass, chunk by chunk.

    The only upstream gradient is that of the scalar total, so the logits need not be kept or computed again: three
    vocabulary-sized matrix products a token instead of four.
    """

    @staticmethod
    def forward(ctx, hidden, table, bias, posterior, target, weight, with_grad):
        flat = hidden.reshape(-1, hidden.shape[-1])
        flat_weight = weight.reshape(-1)
        ids = target.reshape(-1) if isinstance(target, Tensor) else None
        compute_table, _ = compute_copy(flat, table, None)
        inverse_temperature = 1.0 / posterior.temperature

        wants_hidden, wants_table, wants_bias = (need and with_grad for need in ctx.needs_input_grad[:3])
        accumulator = torch.promote_types(table.dtype, torch.float32)
        grad_hidden = torch.empty_like(flat) if wants_hidden else None
        grad_table = torch.zeros(table.shape, dtype=accumulator, device=table.device) if wants_table else None
        grad_bias = torch.zeros(bias.shape, dtype=accumulator, device=bias.device) if wants_bias else None

        per_token = torch.empty(flat.shape[0], dtype=accumulator, device=flat.device)
        for part in chunks(flat.shape[0], table.shape[0], flat.device):
            h = flat[part].to(compute_table.dtype)
            logits, squashed = softcapped_logits(h, compute_table, bias, posterior.softcap)
            logits = logits * inverse_temperature if inverse_temperature != 1.0 else logits
            log_total = logits.logsumexp(-1)
            if ids is not None:
                index = ids[part, None]
                per_token[part] = log_total - logits.gather(1, index)[:, 0]
            else:
                q = target.probability_chunk(part)
                per_token[part] = log_total - torch.linalg.vecdot(q.to(logits.dtype), logits)
            if grad_hidden is None and grad_table is None and grad_bias is None:
                continue
            # d loss / d logits = weight * (p - q), carried through temperature and softcap in place
            slope = logits.sub_(log_total[:, None]).exp_()
            if ids is not None:
                slope.scatter_add_(1, index, slope.new_full((), -1.0).expand(index.shape))
            else:
                slope.sub_(q)
            slope.mul_((flat_weight[part] * inverse_temperature).to(slope.dtype)[:, None])
            if squashed is not None:
                slope.mul_(squashed.square_().neg_().add_(1.0))
            if grad_bias is not None:
                grad_bias += slope.sum(0)
            slope = slope.to(compute_table.dtype)
            with torch.autocast(flat.device.type, enabled=False):
                if grad_hidden is not None:
                    grad_hidden[part] = (slope @ compute_table).to(grad_hidden.dtype)
                if grad_table is not None:
                    if compute_table.dtype == accumulator:
                        grad_table.addmm_(slope.T, h)
                    else:
                        grad_table += slope.T @ h

        ctx.save_for_backward(grad_hidden, grad_table, grad_bias)
        ctx.shape, ctx.dtypes = hidden.shape, (table.dtype, bias.dtype)
        total = (per_token * flat_weight).sum()
        per_token = per_token.view(weight.shape)
        ctx.mark_non_differentiable(per_token)
        return total, per_token

    @staticmethod
    def backward(ctx, grad_total, _):
        grad_hidden, grad_table, grad_bias = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = (grad_hidden * grad_total).view(ctx.shape)
        if grad_table is not None:
            grad_table = grad_table.mul_(grad_total).to(ctx.dtypes[0])
        if grad_bias is not None:
            grad_bias = grad_bias.mul_(grad_total).to(ctx.dtypes[1])
        return grad_hidden, grad_table, grad_bias, None, None, None, None
