"""The Canvas that every sampler fills: given tokens, and positions to write; and templates, "The [8] sat on the [4]."."""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from flm.ranges import MOST_POSITIONS, Few, Length, StepCounts

Pieces = Sequence[Sequence[int] | int]  # given token ids and lengths of holes, in order
# A network can read more positions than it was trained on, at a cost that grows with the square. Some write sense a little way
# beyond their training length; at this many times the length none does.
TIMES_TRAINED = 64
log = logging.getLogger(__name__)


def positions(pieces: Pieces) -> int:
    """The number of positions of a canvas made of these pieces."""
    return sum(piece if isinstance(piece, int) else len(piece) for piece in pieces)


class LengthCheck:
    """Checks lengths of texts, and warns of those beyond a model's training, each time only of a longer one than before.

    Args:
        trained: length that the model was trained on, in tokens.
        most: most positions that its network can read; None: any number.
    """

    def __init__(self, trained: int, most: int | None = None):
        self._trained = self._said = trained
        self._most = min(TIMES_TRAINED * trained, most or TIMES_TRAINED * trained)

    def __call__(self, length: int) -> None:
        """Raises ValueError for a text longer than the network can read, or than TIMES_TRAINED training lengths."""
        known = f"length: a text of {length:,} tokens, of a model that was trained on {self._trained:,}"
        if length > self._most:
            raise ValueError(f"{known}: at most {self._most:,} can be asked of it")
        if length > self._said:
            log.warning("%s: it has learned nothing of positions beyond", known)
            self._said = length


@dataclass(frozen=True)
class Canvas:
    """Given tokens, and the positions that a sampler may write.

    Attributes:
        tokens: (B, L) int64; placeholders (0) where editable.
        editable: (B, L) bool, the positions to write.
        documents: (B, L) int64 as in `Batch`, -1 on padding, which is not editable; None: every row is one document. Samplers
            of discrete noise pass them to the network.
    """

    tokens: Tensor
    editable: Tensor
    documents: Tensor | None = None

    @classmethod
    def blank(cls, batch: int, length: int, device: torch.device | str = "cpu") -> "Canvas":
        return cls.from_pieces([length], batch, device)

    @classmethod
    def from_pieces(cls, pieces: Pieces, batch: int, device: torch.device | str = "cpu") -> "Canvas":
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
    def stacked(cls, canvases: Sequence["Canvas"]) -> "Canvas":
        """Sequences of several canvases of one length, in their order; without documents."""
        return cls(torch.cat([one.tokens for one in canvases]), torch.cat([one.editable for one in canvases]))

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


class Text(str):
    """A text that was written, with its token ids."""

    ids: list[int]

    @classmethod
    def of(cls, text: str, ids: list[int]) -> "Text":
        found = cls(text)
        found.ids = ids
        return found


@dataclass(frozen=True)
class CanvasOptions:
    """The keys of a `sampling` config that are not options of the sampler; see configs/sampling/default.yaml."""

    steps: StepCounts = (1, 8, 64)
    num_sample_batches: Few = 1
    length: Length | None = None
    prompt: str | None = None
    suffix: str | None = None
    infill: str | None = None
    film: bool = False


CANVAS_KEYS = tuple(field.name for field in fields(CanvasOptions))
_MARK = re.compile(r"\[\[|\]\]|\[([0-9]+)\]")


def has_holes(text: str) -> bool:
    """Whether a text is a template: has a number in brackets that are not doubled."""
    return any(mark.group(1) is not None for mark in _MARK.finditer(text))


def pieces_of(template: str, encode: Callable[[str, bool], list[int]], name: str = "sampling.infill") -> list[list[int] | int]:
    """Given token ids and holes in reading order, for `Canvas.from_pieces`.

    Args:
        template: text in which a number in brackets is a hole of so many tokens. Brackets around anything else are text; [[ and
            ]] stand for one bracket of text, so that [[8]] is the text [8].
        encode: maps a part of the text between holes, and whether anything stands before it, to token ids.
        name: of the template, for errors.

    Raises:
        ValueError: there is no hole, or one of 0 tokens.
    """
    texts, holes, start = [""], [], 0
    for mark in _MARK.finditer(template):
        texts[-1] += template[start : mark.start()]
        start = mark.end()
        if mark.group(1) is None:
            texts[-1] += mark.group()[0]
        else:
            holes.append(_length(mark.group(1), template, name))
            texts.append("")
    texts[-1] += template[start:]
    if sum(holes) > MOST_POSITIONS:
        raise ValueError(f"{name}: holes of {sum(holes):,} tokens are longer than any text: at most {MOST_POSITIONS:,}")
    if not holes:
        raise ValueError(f"{name}={template!r} has no hole: write the number of tokens to fill in brackets, [8]")
    pieces: list[list[int] | int] = [encode(texts[0], False)]
    for hole, text in zip(holes, texts[1:], strict=True):
        pieces += [hole, encode(text, True)]
    return pieces


def _length(digits: str, template: str, name: str) -> int:
    if len(digits) > 9:
        raise ValueError(f"{name}: a hole of [{digits[:9]}...] tokens is longer than any text")
    if int(digits) == 0:
        raise ValueError(f"{name}={template!r} has a hole of 0 tokens: a hole needs at least 1")
    return int(digits)
