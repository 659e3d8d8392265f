"""What reading from left to right needs: a model of the next token around a causal backbone, and its cache.

B batch, L positions, D width, V vocabulary, H heads of width Dh.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flm.posterior import TokenPosterior


class KeyValues:
    """Keys and values (B, H, n, Dh) of the n positions that one block has read so far; without gradients.

    Args:
        capacity: the most positions it can take. Memory for them is set aside at the first `extend`.
    """

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0
        self._stored: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends those of further positions and returns all.

        Raises:
            ValueError: there is no room for them.
        """
        start, end = self.length, self.length + k.shape[-2]
        if end > self.capacity:
            raise ValueError(f"{end} positions do not fit a cache of {self.capacity}")
        if not self._stored:
            self._stored = tuple(x.new_empty(*x.shape[:-2], self.capacity, x.shape[-1]) for x in (k, v))
        for stored, new in zip(self._stored, (k, v), strict=True):
            stored[..., start:end, :] = new
        self.length = end
        k, v = (stored[..., :end, :] for stored in self._stored)
        return k, v


def triangle_after(new: int, read: int, device: torch.device) -> tuple[bool, Tensor | None]:
    """`causal` and `mask` of `attention` for `new` queries that stand at the end of `read` keys."""
    if new == read:
        return True, None
    # the triangle is shifted, and for one alone it is full
    return False, None if new == 1 else torch.ones(new, read, dtype=torch.bool, device=device).tril(read - new)


@runtime_checkable
class LeftToRight(Protocol):
    """A network that predicts every token (B, L) of a block from those before it, the first included; see `CausalTransformer`.

    Attributes:
        hidden_size: D, width of the hidden states of its posteriors.
    """

    hidden_size: int

    def __call__(self, tokens: Tensor) -> TokenPosterior: ...

    def new_cache(self, capacity: int) -> Any: ...

    def next_token(self, tokens: Tensor, cache: Any) -> TokenPosterior: ...


def left_to_right(backbone: Callable[..., nn.Module], vocab_size: int) -> nn.Module:
    """The network of a backbone as a `LeftToRight`: itself where it is one, else in a `CausalTransformer`.

    Args:
        backbone: called as backbone(vocab_size=V, causal=True, conditioned=False).
        vocab_size: V.
    """
    network = backbone(vocab_size=vocab_size, causal=True, conditioned=False)
    return network if isinstance(network, LeftToRight) else CausalTransformer(lambda **_: network, vocab_size)


def by_document(network: Callable[[Tensor], TokenPosterior], tokens: Tensor, documents: Tensor | None) -> TokenPosterior:
    """Predictions (B, L) of a `LeftToRight`, each from the tokens before it in its own document, the first from none.

    Every document is read as a row of its own, which needs nothing of the network.

    Args:
        documents: (B, L), runs of positions that belong together, -1 on padding; None: rows are whole.
    """
    if documents is None:
        return network(tokens)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    if not bool((begins[:, 1:] & (documents[:, 1:] >= 0)).any()):
        return network(tokens)  # a document and padding after it, which no token of it sees
    run = begins.flatten().cumsum(0) - 1
    place = torch.arange(len(run), device=run.device)
    inside = place - place[begins.flatten()][run]
    rows = tokens.new_zeros(int(run[-1]) + 1, int(inside.max()) + 1)
    rows[run, inside] = tokens.flatten()
    posterior = network(rows)
    return replace(posterior, hidden=posterior.hidden[run, inside].view(*tokens.shape, -1))


class CausalTransformer(nn.Module):
    """p(token_i | the tokens before it) at every position of a block, for any length.

    Position i reads the embedding of token i - 1, and position 0 a learned vector, so that every token of a block is
    predicted, the first included, whatever the vocabulary and the framing of blocks.

    Args:
        backbone: called as backbone(vocab_size=V, causal=True, conditioned=False); gives a module like `DiT`.
        vocab_size: V.

    Attributes:
        start: (D,) parameter, read in place of a token before the first; initialised as a row of the input table.
    """

    def __init__(self, backbone: Callable[..., nn.Module], vocab_size: int):
        super().__init__()
        self.body = backbone(vocab_size=vocab_size, causal=True, conditioned=False)
        self.hidden_size = width = self.body.input_table.shape[1]
        self.start = nn.Parameter(torch.empty(width).uniform_(-1, 1) * width**-0.5)

    def forward(self, tokens: Tensor) -> TokenPosterior:
        """The predictions (B, L) of tokens (B, L): the i-th is of token i and has not seen it nor any after it."""
        return self.body(self._embedded(tokens[:, :-1], with_start=True))

    def new_cache(self, capacity: int) -> Sequence[KeyValues]:
        """For `next_token`; `capacity` counts the start and all tokens that will be read, L to write L tokens."""
        return self.body.new_cache(capacity)

    @torch.no_grad()
    def next_token(self, tokens: Tensor, cache: Sequence[KeyValues]) -> TokenPosterior:
        """The prediction (B, 1) of the token that follows `tokens` (B, n), which follow what `cache` has read.

        The cache reads them too. With an empty one they are the first of the sequence, and n may be 0.
        """
        posterior = self.body(self._embedded(tokens, with_start=cache[0].length == 0), cache=cache)
        return replace(posterior, hidden=posterior.hidden[:, -1:])

    def _embedded(self, tokens: Tensor, with_start: bool) -> Tensor:
        embedded = F.embedding(tokens, self.body.input_table)
        if not with_start:
            return embedded
        return torch.cat((self.start.expand(tokens.shape[0], 1, -1), embedded), dim=1)
