"""Layouts: how a prompt and its response lie in a row of L tokens, and which of the tokens are targets.

A row holds the prompt, the response, one EOS, and more EOS up to L as padding. Given tokens have weight 0, targets weight 1.
Padding "target" is learned too: it teaches a model that writes all positions at once how long a response is. Padding
"excluded" belongs to no document (-1), so that nothing attends to it and nothing is learned there. Either way it is no text,
and nats are not divided by its length.
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
    """Base of the layouts: subclasses define `pieces()`.

    Attributes:
        variants: how many rows are made of each pair.
    """

    variants = 1

    def __init__(self, padding: Padding = "target"):
        self.padding = padding

    def fingerprint(self) -> dict[str, Any]:
        """Plain values that change whenever its rows do."""
        return {"layout": type(self).__name__, **vars(self)}

    def size(self, prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer) -> int | None:
        """Positions of the longest row of a pair, without padding; None: the pair has no row of any length."""
        return len(prompt) + len(response) + 1

    def pieces(
        self, prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer, variant: int, rng: random.Random
    ) -> "list[Piece]":
        """The row's tokens in order, with the EOS and without the padding at the end.

        Args:
            variant: which of the `variants` rows.
            rng: makes the random choices.
        """
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
        """One row of a pair whose `size` is at most `length`; other arguments as of `pieces`."""
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
    """Consecutive tokens of a row.

    Attributes:
        target: whether they are to be written; otherwise they are given.
        padding: whether they are EOS that only fill up a slot.
    """

    tokens: list[int]
    target: bool
    padding: bool = False


class ResponseLayout(Layout):
    """The prompt is given, the response and its EOS are targets.

    Args:
        padding: target or excluded.
    """

    def pieces(
        self, prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer, variant: int, rng: random.Random
    ) -> list[Piece]:
        return [Piece(list(prompt), False), Piece([*response, tokenizer.eos_id], True)]


class SpanLayout(Layout):
    """Random spans of the response are targets, all else is given. A span keeps its number of tokens.

    Args:
        levels: rows of each pair. Row i hides the share i / (levels - 1) of the response, but at least one token.
        max_spans: a row hides 1 ... this many spans, with equal probability, but no more than hidden tokens. They may touch.
        padding: usually excluded, since EOS is given.
    """

    def __init__(self, levels: Count = 10, max_spans: Count = 3, padding: Padding = "excluded"):
        super().__init__(padding)
        self.variants, self.max_spans = levels, max_spans

    def size(self, prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer) -> int | None:
        return super().size(prompt, response, tokenizer) if response else None  # no token of an empty response can be hidden

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
    """Random single tokens of the response are targets, all else is given.

    Args:
        levels: as of `SpanLayout`.
        padding: usually excluded, since EOS is given.
    """

    def __init__(self, levels: Count = 10, padding: Padding = "excluded"):
        super().__init__(padding)
        self.variants = levels

    def size(self, prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer) -> int | None:
        return super().size(prompt, response, tokenizer) if response else None  # no token of an empty response can be hidden

    def pieces(
        self, prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer, variant: int, rng: random.Random
    ) -> list[Piece]:
        holes = scattered(len(response), hidden_count(len(response), variant, self.variants), rng)
        tokens = [Piece([token], hole) for token, hole in zip(response, holes, strict=True)]
        return [Piece(list(prompt), False), *tokens, Piece([tokenizer.eos_id], False)]


class LineLayout(Layout):
    """Random lines of the response are targets, each in a slot of its own; all else is given.

    A slot holds the line without its line break, padded with EOS to `line_length` tokens, all of them targets. Lines and
    line breaks are tokenised separately, so that given tokens reveal nothing of hidden ones. A blank line is never hidden. A
    pair with a line longer than a slot is left out.

    Args:
        line_length: tokens of a slot.
        levels: as of `SpanLayout`, for lines instead of tokens.
        padding: usually excluded, since EOS is given.
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
    """How many of `count` are hidden at a level: the share level / (levels - 1), but at least one; all if levels is 1."""
    return max(1, round(count * level / (levels - 1))) if levels > 1 else count


def scattered(length: int, hidden: int, rng: random.Random) -> list[bool]:
    """Whether each of `length` positions is hidden, `hidden` of them; every choice is equally likely."""
    chosen = set(rng.sample(range(length), hidden))
    return [position in chosen for position in range(length)]


def _parts(total: int, count: int, rng: random.Random) -> list[int]:
    """`count` whole numbers >= 0 in order that add up to `total`; every way is equally likely."""
    bars = sorted(rng.sample(range(total + count - 1), count - 1))
    ends = [-1, *bars, total + count - 1]
    return [after - before - 1 for before, after in zip(ends, ends[1:], strict=False)]
