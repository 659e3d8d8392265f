"""What is given and what is to be filled: every sampler takes a Canvas."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Canvas:
    """Tokens (B, L) int64 and the positions (B, L) bool a sampler may write; tokens there are placeholders (0).

    documents (B, L) int64 as in `Batch`, -1 on padding, which is not editable; None: every row is one whole document.
    Samplers of discrete noise pass them on to the network.
    """

    tokens: Tensor
    editable: Tensor
    documents: Tensor | None = None

    @classmethod
    def blank(cls, batch: int, length: int, device: torch.device | str = "cpu") -> "Canvas":
        return cls.from_pieces([length], batch, device)

    @classmethod
    def from_pieces(cls, pieces: Sequence[Sequence[int] | int], batch: int, device: torch.device | str = "cpu") -> "Canvas":
        """Given token ids and holes in reading order: `[[5, 9], 8, [2]]` is two given tokens, 8 to fill, one given."""
        tokens: list[int] = []
        editable: list[bool] = []
        for piece in pieces:
            if isinstance(piece, int):
                if piece < 0:
                    raise ValueError(f"a hole needs a length of at least 0, not {piece}")
                tokens += [0] * piece
                editable += [True] * piece
            else:
                tokens += piece
                editable += [False] * len(piece)
        return cls(
            torch.tensor(tokens, dtype=torch.long, device=device).expand(batch, -1),
            torch.tensor(editable, dtype=torch.bool, device=device).expand(batch, -1),
        )

    @classmethod
    def between(
        cls,
        prompt: Sequence[int],
        suffix: Sequence[int],
        length: int,
        batch: int,
        device: torch.device | str = "cpu",
    ) -> "Canvas":
        """A prompt at the left end, a suffix at the right end, and a hole between them; `length` positions in all.

        Raises:
            ValueError: prompt and suffix leave nothing to fill.
        """
        hole = length - len(prompt) - len(suffix)
        if hole < 1:
            raise ValueError(
                f"sampling.prompt ({len(prompt)} tokens) and sampling.suffix ({len(suffix)}) leave nothing to fill in "
                f"{length} positions: shorten them or raise sampling.length"
            )
        return cls.from_pieces([list(prompt), hole, list(suffix)], batch, device)

    def fill(self, tokens: Tensor) -> Tensor:
        """The proposed tokens (B, L) where editable, the given ones elsewhere."""
        return torch.where(self.editable, tokens, self.tokens)
