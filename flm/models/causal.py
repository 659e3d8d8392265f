"""Models that read from left to right: predictions of the next token by a causal backbone, and its cache of keys and values.

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
    """Keys and values (B, H, n, Dh) of the n positions that one block has read so far, without gradients.

    Args:
        capacity: most positions it can hold. Memory for them is allocated at the first `extend`.
    """

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0
        self._stored: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends the keys and values of further positions and returns all.

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
    """The arguments `causal` and `mask` of `attention` for `new` queries at the last of `read` keys."""
    if new == read:
        return True, None
    # a shifted triangle; a single query sees all keys
    return False, None if new == 1 else torch.ones(new, read, dtype=torch.bool, device=device).tril(read - new)


@runtime_checkable
class LeftToRight(Protocol):
    """A network that predicts every token (B, L) of a block, the first included, from those before it; see `CausalTransformer`.

    Attributes:
        hidden_size: D, width of the hidden states of its posteriors.
    """

    hidden_size: int

    def __call__(self, tokens: Tensor) -> TokenPosterior: ...

    def new_cache(self, capacity: int) -> Any: ...

    def next_token(self, tokens: Tensor, cache: Any) -> TokenPosterior: ...


def left_to_right(backbone: Callable[..., nn.Module], vocab_size: int) -> nn.Module:
    """The network that `backbone` makes, as a `LeftToRight`: itself if it is one, else inside a `CausalTransformer`.

    Args:
        backbone: called as backbone(vocab_size=V, causal=True, conditioned=False).
        vocab_size: V.
    """
    network = backbone(vocab_size=vocab_size, causal=True, conditioned=False)
    return network if isinstance(network, LeftToRight) else CausalTransformer(lambda **_: network, vocab_size)


def by_document(network: Callable[[Tensor], TokenPosterior], tokens: Tensor, documents: Tensor | None) -> TokenPosterior:
    """Predictions (B, L) of a `LeftToRight`, each from the tokens before it in its own document.

    Every document becomes a row of its own, so the network needs no mask.

    Args:
        documents: (B, L), equal numbers for consecutive positions of one document, -1 on padding; None: rows are whole.
    """
    if documents is None:
        return network(tokens)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    if not bool((begins[:, 1:] & (documents[:, 1:] >= 0)).any()):
        return network(tokens)  # each row is one document, and padding after it, which no token of it sees
    run = begins.flatten().cumsum(0) - 1
    place = torch.arange(len(run), device=run.device)
    inside = place - place[begins.flatten()][run]
    rows = tokens.new_zeros(int(run[-1]) + 1, int(inside.max()) + 1)
    rows[run, inside] = tokens.flatten()
    posterior = network(rows)
    return replace(posterior, hidden=posterior.hidden[run, inside].view(*tokens.shape, -1))


class CausalTransformer(nn.Module):
    """p(token_i | the tokens before it) at every position of a block of any length.

    Position i reads the embedding of token i - 1, and position 0 a learned vector. So every token of a block is predicted, the
    first included, whether or not blocks begin with a special token.

    Args:
        backbone: called as backbone(vocab_size=V, causal=True, conditioned=False); gives a module like `DiT`.
        vocab_size: V.

    Attributes:
        start: (D,) parameter, read in place of a token before the first; initialised like a row of the input table.
    """

    def __init__(self, backbone: Callable[..., nn.Module], vocab_size: int):
        super().__init__()
        self.body = backbone(vocab_size=vocab_size, causal=True, conditioned=False)
        self.hidden_size = width = self.body.input_table.shape[1]
        self.start = nn.Parameter(torch.empty(width).uniform_(-1, 1) * width**-0.5)

    def forward(self, tokens: Tensor) -> TokenPosterior:
        """Predictions (B, L) of tokens (B, L): the i-th is of token i, from the tokens before it."""
        return self.body(self._embedded(tokens[:, :-1], with_start=True))

    def new_cache(self, capacity: int) -> Sequence[KeyValues]:
        """A cache for `next_token`. `capacity` counts the start and all tokens that will be read: L to write L tokens."""
        return self.body.new_cache(capacity)

    @torch.no_grad()
    def next_token(self, tokens: Tensor, cache: Sequence[KeyValues]) -> TokenPosterior:
        """The prediction (B, 1) of the token after `tokens` (B, n), which follow the tokens in `cache` and are added to it.

        With an empty cache they are the first of the sequence, and n may be 0.
        """
        posterior = self.body(self._embedded(tokens, with_start=cache[0].length == 0), cache=cache)
        return replace(posterior, hidden=posterior.hidden[:, -1:])

    def _embedded(self, tokens: Tensor, with_start: bool) -> Tensor:
        embedded = F.embedding(tokens, self.body.input_table)
        if not with_start:
            return embedded
        return torch.cat((self.start.expand(tokens.shape[0], 1, -1), embedded), dim=1)
