"""The predicted distribution over the vocabulary, reduced in chunks of tokens so that no (B, L, V) tensor is ever built.

A prediction is kept as final hidden states and the output table. Its logits softcap(hidden @ table^T + bias) / temperature
exist for one chunk of tokens at a time, forward and backward. B batch, L length, D width, V vocabulary, n tokens of a chunk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from flm.device import compiled_on_device

# Logits in memory at once. With 64 MB of fp32 matrix products on a CPU are large enough to be efficient; a GPU needs more.
CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**28}
# Fast kernels of tensor cores need sizes that are multiples of this, which V = 50,257 is not.
PADDED_ON = {"cuda"}
PADDED_ROWS = 64


def chunks(num_tokens: int, vocab_size: int, device: torch.device) -> Iterator[slice]:
    """Slices of the token axis that hold up to CHUNK_ELEMENTS logits each (at least one token)."""
    most = max(1, CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["cpu"]) // vocab_size)
    size = -(-num_tokens // max(1, -(-num_tokens // most)))  # nearly equal: functions are compiled for few different lengths
    return (slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, max(1, size)))


class Offset(Protocol):
    """Numbers to add to the logits, computed chunk by chunk."""

    def chunk(self, part: slice) -> Tensor:
        """(n, V) of a slice of the flattened token axis, in fp32 or better; the caller may overwrite it."""
        ...


@dataclass(frozen=True)
class Shifted:
    """An offset whose token axis begins `start` tokens later."""

    base: Offset
    start: int

    def chunk(self, part: slice) -> Tensor:
        return self.base.chunk(slice(part.start + self.start, part.stop + self.start))


@dataclass(frozen=True)
class TokenPosterior:
    """A probability vector over V tokens at every position, kept as hidden states and an output table.

    Attributes:
        hidden: (B, L, D) final hidden states.
        table: (V, D) output table.
        bias: (V,); None: no bias.
        softcap: c in c * tanh(logits / c); None: no softcap.
        temperature: divides the logits; > 0.
        offset: added to the softcapped logits, without gradient; None: nothing.
        top_k: only the k most probable tokens are possible; None: all are.
        top_p: of these, only the fewest most probable ones whose share of the mass reaches top_p, in (0, 1]; None: all are.
    """

    hidden: Tensor
    table: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    temperature: float = 1.0
    offset: Offset | None = None
    top_k: int | None = None
    top_p: float | None = None

    @property
    def vocab_size(self) -> int:
        return self.table.shape[0]

    @property
    def is_truncated(self) -> bool:
        return self.top_k is not None or self.top_p is not None

    @property
    def whole(self) -> "TokenPosterior":
        """The same prediction without top_k and top_p."""
        return replace(self, top_k=None, top_p=None) if self.is_truncated else self

    @property
    def shape(self) -> torch.Size:
        """(B, L)."""
        return self.hidden.shape[:-1]

    def tempered(self, temperature: float) -> "TokenPosterior":
        """The same prediction with its logits divided by `temperature` (> 0)."""
        if not temperature > 0:
            raise ValueError(f"sampling.temperature must be above 0, not {temperature}")
        return replace(self, temperature=self.temperature * temperature)

    def detach(self) -> "TokenPosterior":
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, hidden=self.hidden.detach(), table=self.table.detach(), bias=bias)

    def rows(self, index: slice) -> "TokenPosterior":
        """The posterior of some sequences of the batch, a slice without a stride."""
        start = index.indices(self.hidden.shape[0])[0] * self.hidden.shape[1]
        offset = None if self.offset is None else Shifted(self.offset, start)
        return replace(self, hidden=self.hidden[index], offset=offset)

    @torch.no_grad()
    def expected(self, tables: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Expected row of each table: softmax(logits) @ W_k, (B, L, d_k) in fp32 or better.

        Under autocast the products run in its precision, and softmax in fp32. Methods that draw or report ignore autocast.
        """
        hidden = self.hidden.reshape(-1, self.hidden.shape[-1])
        table = padded_copy(hidden, self.table)
        copies = [padded_copy(hidden, w) for w in tables]
        pieces = []
        for part in chunks(hidden.shape[0], self.vocab_size, hidden.device):
            p = self._probabilities(part, hidden[part].to(table.dtype), table)
            with torch.autocast(hidden.device.type, enabled=False):
                products = [padded(p.to(w.dtype), len(w)) @ w for w in copies]
            pieces.append([product.to(full.dtype) for product, full in zip(products, tables, strict=True)])
        return tuple(torch.cat(column).view(*self.shape, -1) for column in zip(*pieces, strict=True))

    @torch.no_grad()
    def argmax(self) -> Tensor:
        """Most probable token (B, L)."""
        return self.whole._reduce(lambda logits: (logits.argmax(-1),))[0]

    @torch.no_grad()
    def log_prob(self, tokens: Tensor) -> Tensor:
        """Log-probability (B, L) in nats of the given tokens (B, L)."""
        flat = tokens.reshape(-1)
        pieces = [logits.gather(1, flat[part, None])[:, 0] - logits.logsumexp(-1) for part, logits in self.logit_chunks()]
        return torch.cat(pieces).view_as(tokens)

    @torch.no_grad()
    def entropy(self) -> Tensor:
        """Entropy (B, L) in nats."""
        return self._reduce(lambda logits: (torch.special.entr(torch.softmax(logits, -1)).sum(-1),))[0]

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> Tensor:
        """One token (B, L) drawn at every position, in float64 by inversion.

        In float32 (probabilities or Gumbel noise) rare tokens would never be drawn, as at a lower temperature
        (arXiv 2409.02908).
        """
        return self._reduce(lambda logits: (draw_from(softmax64(logits), generator),))[0]

    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """All probabilities (B, L, V): for small vocabularies, tests and figures only."""
        return self._reduce(lambda logits: (torch.softmax(logits, -1),))[0]

    # Chunks -----------------------------------------------------------------------------------------------------------

    def logit_chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the flattened token axis, each with its tempered logits (n, V), which the caller may overwrite.

        They are in the table's own precision even under autocast: a bf16 logit near 30 is off by up to 0.06.
        """
        hidden = self.hidden.reshape(-1, self.hidden.shape[-1])
        for part in chunks(hidden.shape[0], self.vocab_size, hidden.device):
            logits, _ = softcapped_logits(
                hidden[part].to(self.table.dtype), self.table, self.bias, self.softcap, with_tanh=False
            )
            if self.offset is not None:
                logits += self.offset.chunk(part)
            logits = logits / self.temperature if self.temperature != 1.0 else logits
            yield part, truncated_logits(logits, self.top_k, self.top_p) if self.is_truncated else logits

    def chunk(self, part: slice) -> Tensor:
        """Probabilities (n, V) of one slice of the flattened token axis."""
        hidden = self.hidden.reshape(-1, self.hidden.shape[-1])[part]
        table = compute_copy(hidden, self.table)
        return self._probabilities(part, hidden.to(table.dtype), table)

    def _probabilities(self, part: slice, hidden: Tensor, table: Tensor) -> Tensor:
        """(n, V) of the hidden states (n, D) of a slice; `table` is a copy in the dtype of the matrix product."""
        offset = None if self.offset is None else self.offset.chunk(part)
        p = chunk_probabilities(hidden, table, self.bias, self.softcap, self.temperature, offset, self.vocab_size)
        if not self.is_truncated:
            return p
        p = truncate(p, self.top_k, self.top_p)
        return p / p.sum(-1, keepdim=True)

    def _reduce(self, function) -> tuple[Tensor, ...]:
        pieces = [function(logits) for _, logits in self.logit_chunks()]
        return tuple(torch.cat(column).view(*self.shape, *column[0].shape[1:]) for column in zip(*pieces, strict=True))


def softcapped_logits(
    hidden: Tensor,
    table: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    vocab_size: int | None = None,
    with_tanh: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Logits (n, V) in fp32 or better, and tanh(raw / softcap), which the backward pass needs (None without softcap).

    Args:
        vocab_size: V, if the table has rows of padding after the first V; None: it has none.
        with_tanh: whether the tanh is wanted. On a CPU allocating one more (n, V) takes as long as ten passes over one.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        raw = (hidden @ table.T)[:, :vocab_size]
    raw = raw.float() if raw.dtype in (torch.bfloat16, torch.float16) else raw
    if bias is not None:
        raw = raw.add_(bias)
    if softcap is None:
        return raw, None
    squashed = raw.div_(softcap).tanh_()
    if with_tanh or squashed.requires_grad:
        return squashed * softcap, squashed
    return squashed.mul_(softcap), None


@compiled_on_device
def chunk_probabilities(
    hidden: Tensor,
    table: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    temperature: float,
    offset: Tensor | None = None,
    vocab_size: int | None = None,
) -> Tensor:
    """Probabilities (n, V) of hidden states (n, D), in fp32 or better. vocab_size: as of `softcapped_logits`."""
    logits, _ = softcapped_logits(hidden, table, bias, softcap, vocab_size, with_tanh=False)
    logits = logits if offset is None else logits + offset
    logits = logits / temperature if temperature != 1.0 else logits
    if logits.requires_grad or torch.compiler.is_compiling():
        return torch.softmax(logits, -1)
    p = logits.sub_(logits.amax(-1, keepdim=True)).exp_()  # the same in the logits' memory
    return p.div_(p.sum(-1, keepdim=True))


def compute_copy(hidden: Tensor, table: Tensor) -> Tensor:
    """The table in the dtype of matrix products on the device of `hidden`: autocast's if it is on, else the table's own."""
    device = hidden.device.type
    return table.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else table


def padded_copy(hidden: Tensor, table: Tensor) -> Tensor:
    """As `compute_copy`, on devices of PADDED_ON with rows of zeros up to a multiple of PADDED_ROWS.

    Only under autocast, where a copy is made anyway; in full precision nothing is padded.
    """
    device, size = hidden.device.type, table.shape[0]
    rows = -(-size // PADDED_ROWS) * PADDED_ROWS
    if rows == size or device not in PADDED_ON or not torch.is_autocast_enabled(device):
        return compute_copy(hidden, table)
    copy = table.new_zeros((rows, table.shape[1]), dtype=torch.get_autocast_dtype(device))
    copy[:size] = table
    return copy


def padded(values: Tensor, size: int) -> Tensor:
    """(n, V) with columns of zeros up to `size`."""
    return values if values.shape[1] == size else F.pad(values, (0, size - values.shape[1]))


def softmax64(logits: Tensor) -> Tensor:
    """Probabilities (n, V) in float64 of logits, which float64 ones are overwritten with: never two such tensors at once."""
    p = logits.double()
    p.sub_(p.amax(-1, keepdim=True)).exp_()
    return p.div_(p.sum(-1, keepdim=True))


DRAWN_IN = 4  # parts of the rows of a chunk, so that its float64 weights are not there a second time as cumulative sums


def draw_from(p: Tensor, generator: torch.Generator) -> Tensor:
    """An index (n,) drawn from each row of weights p (n, V), float64, by inversion."""
    u = torch.rand(p.shape[0], 1, generator=generator, dtype=torch.float64, device=p.device)
    size = max(1, -(-len(p) // DRAWN_IN))
    return torch.cat([_inverted(*rows) for rows in zip(p.split(size), u.split(size), strict=True)])


def _inverted(p: Tensor, u: Tensor) -> Tensor:
    cumulative = p.cumsum(-1)
    # u < 1 strictly, so the index found always has positive probability
    return torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)[:, 0].clamp_(max=p.shape[1] - 1)


def truncated_logits(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits (n, V) with -inf where `truncate` leaves no probability; beyond them the work is on k columns."""
    kept, order = logits.sort(descending=True) if top_k is None else logits.topk(min(top_k, logits.shape[-1]))
    p = softmax64(kept.clone())
    beyond = p == 0
    if top_p is not None:
        beyond[:, 1:] |= (p.cumsum(-1) >= top_p * p.sum(-1, keepdim=True))[:, :-1]
    return torch.full_like(logits, -torch.inf).scatter_(-1, order, kept.masked_fill_(beyond, -torch.inf))


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
        keep[..., 0] = True  # also for a top_p so small that the product underflows
        p = torch.zeros_like(p).scatter_(-1, order, ordered * keep)
    return p
