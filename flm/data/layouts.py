"""How a prompt and its response lie in a row of L tokens, and what of it is to be learned.

A row holds prompt, response, one EOS, and EOS up to L. A given token has weight 0, a token to write weight 1.
Padding is either a target too, which teaches a model that writes all positions at once how long a response is, or belongs to
no document (-1), so that nothing attends to it and nothing is learned there. In either case it is no text: nats are not divided
by it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from flm.data.tokenizers import Tokenizer
from flm.ranges import Count


class Row(NamedTuple):
    """Tokens (L,) int64, weight (L,) float, documents (L,) int64 and padding (L,) bool or None, as of a `Batch`."""

    tokens: Tensor
    weight: Tensor
    documents: Tensor | None = None
    padding: Tensor | None = None


Padding = Literal["target", "excluded"]


class Layout:
    """Base of the layouts.

    Attributes:
        variants: rows made of each pair.
    """

    variants = 1

    def __init__(self, padding: Padding = "target"):
        self.padding = padding

    def fingerprint(self) -> dict[str, Any]:
        """Plain values that determine what it does."""
        return {"layout": type(self).__name__, **vars(self)}

    def size(self, prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer) -> int | None:
        """Positions that the longest row of a pair takes; None: it does not fit at any length."""
        raise NotImplementedError

    def pieces(
        self, prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer, variant: int, rng: random.Random
    ) -> "list[Piece]":
        """The row's tokens in order, the EOS included and the padding not."""
        raise NotImplementedError

    def row(
        self,
        prompt: Sequence[int],
        response: Sequence[int],
        tokenizer: Tokenizer,
        length: int,
        variant: int,
        rng: random.Random,
    ) -> Row:
        """One row of a pair that fits; `rng` makes the random choices."""
        tokens: list[int] = []
        weight: list[float] = []
        padding: list[bool] = []
        for piece in self.pieces(prompt, response, tokenizer, variant, rng):
            tokens += piece.tokens
            weight += [float(piece.target)] * len(piece.tokens)
            padding += [piece.padding] * len(piece.tokens)
        size, missing = len(tokens), length - len(tokens)
        is_target = self.padding == "target"
        tokens += [tokenizer.eos_id] * missing
        weight += [float(is_target)] * missing
        padding += [is_target] * missing
        documents = None if is_target else torch.tensor([0] * size + [-1] * missing)
        return Row(torch.tensor(tokens), torch.tensor(weight), documents, torch.tensor(padding) if any(padding) else None)


@dataclass(frozen=True)
class Piece:
    """Tokens in a row, given or to be written; padding only fills a place up."""

    tokens: list[int]
    target: bool
    padding: bool = False


class ResponseLayout(Layout):
    """The prompt is given, the response and its EOS are to be written.

    Args:
        padding: target or excluded.
    """

    def size(self, prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer) -> int:
        return len(prompt) + len(response) + 1

    def pieces(
        self, prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer, variant: int, rng: random.Random
    ) -> list[Piece]:
        return [Piece(list(prompt), False), Piece([*response, tokenizer.eos_id], True)]


class SpanLayout(Layout):
    """Random spans of the response are to be written, all else is given; spans keep their length.

    Args:
        levels: rows a pair, hiding shares 0 ... 1 of the response, evenly spaced; at least one token each.
        max_spans: a row hides in 1 ... this many spans, all numbers equally likely.
        padding: as a rule excluded: it is given.
    """

    def __init__(self, levels: Count = 10, max_spans: Count = 3, padding: Padding = "excluded"):
        super().__init__(padding)
        self.variants, self.max_spans = levels, max_spans

    def size(self, prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer) -> int | None:
        return len(prompt) + len(response) + 1 if response else None  # of nothing, nothing can be hidden

    def pieces(
        self, prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer, variant: int, rng: random.Random
    ) -> list[Piece]:
        hidden = hidden_count(len(response), variant, self.variants)
        spans = min(rng.randint(1, self.max_spans), hidden)
        inside = _parts(hidden - spans, spans, rng)  # each span holds one token more than its part
        between = _parts(len(response) - hidden, spans + 1, rng)
        out, place = [Piece(list(prompt), False)], 0
        for index, gap in enumerate(between):
            out.append(Piece(list(response[place : place + gap]), False))
            place += gap
            if index < spans:
                out.append(Piece(list(response[place : place + inside[index] + 1]), True))
                place += inside[index] + 1
        return [*out, Piece([tokenizer.eos_id], False)]


class ScatterLayout(Layout):
    """Random single tokens of the response are to be written, anywhere in it; all else is given.

    Args:
        levels: rows a pair, hiding shares 0 ... 1 of the response, evenly spaced; at least one token each.
        padding: as a rule excluded: it is given.
    """

    def __init__(self, levels: Count = 10, padding: Padding = "excluded"):
        super().__init__(padding)
        self.variants = levels

    def size(self, prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer) -> int | None:
        return len(prompt) + len(response) + 1 if response else None  # of nothing, nothing can be hidden

    def pieces(
        self, prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer, variant: int, rng: random.Random
    ) -> list[Piece]:
        holes = scattered(len(response), hidden_count(len(response), variant, self.variants), rng)
        tokens = [Piece([token], hole) for token, hole in zip(response, holes, strict=True)]
        return [Piece(list(prompt), False), *tokens, Piece([tokenizer.eos_id], False)]


class LineLayout(Layout):
    """Random lines of the response are to be written, each in a slot of its own; all else is given.

    A slot holds the line without its line break, padded with EOS to `line_length` tokens, all of them targets. Lines and
    line breaks are tokenised each on its own, so that given tokens reveal nothing of hidden ones. A blank line is never
    hidden. A pair with a line that no slot holds is left out.

    Args:
        line_length: tokens of a slot.
        levels: rows a pair, hiding shares 0 ... 1 of its lines, evenly spaced; at least one line each.
        padding: as a rule excluded: it is given.
    """

    def __init__(self, line_length: Count = 32, levels: Count = 10, padding: Padding = "excluded"):
        super().__init__(padding)
        self.line_length, self.variants = line_length, levels

    def size(self, prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer) -> int | None:
        lines = tokenizer.decode(response).split("\n")
        long = [len(ids) for ids in tokenizer.encode_batch(lines)]
        if max(long) > self.line_length or not any(line.strip() for line in lines):
            return None
        taken = sum(self.line_length if line.strip() else n for line, n in zip(lines, long, strict=True))
        return len(prompt) + taken + (len(lines) - 1) * len(tokenizer.encode("\n")) + 1

    def pieces(
        self, prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer, variant: int, rng: random.Random
    ) -> list[Piece]:
        lines = tokenizer.decode(response).split("\n")
        written = [index for index, line in enumerate(lines) if line.strip()]
        hidden = set(rng.sample(written, hidden_count(len(written), variant, self.variants)))
        line_break = tokenizer.encode("\n")
        out = [Piece(list(prompt), False)]
        for index, line in enumerate(lines):
            ids = tokenizer.encode(line)
            out += [Piece(line_break if index else [], False), Piece(ids, index in hidden)]
            if index in hidden:
                out.append(Piece([tokenizer.eos_id] * (self.line_length - len(ids)), True, padding=True))
        return [*out, Piece([tokenizer.eos_id], False)]


def hidden_count(count: int, level: int, levels: int) -> int:
    """How many of `count` are hidden at a level: the share level / (levels - 1), at least one; all where there is one level."""
    return max(1, round(count * level / (levels - 1))) if levels > 1 else count


def scattered(length: int, hidden: int, rng: random.Random) -> list[bool]:
    """Whether each of `length` positions is hidden, `hidden` of them; every choice is equally likely."""
    chosen = set(rng.sample(range(length), hidden))
    return [position in chosen for position in range(length)]


def _parts(total: int, count: int, rng: random.Random) -> list[int]:
    """`total` as `count` whole numbers of at least 0 in order, every way equally likely."""
    bars = sorted(rng.sample(range(total + count - 1), count - 1))
    ends = [-1, *bars, total + count - 1]
    return [after - before - 1 for before, after in zip(ends, ends[1:], strict=False)]
