"""Packs examples into rows of L tokens."""

from typing import Protocol

import torch

from flm.data.layouts import Row
from flm.data.tokenizers import Tokenizer
from flm.qwen.examples import Example


class Supply(Protocol):
    """Examples in order."""

    def take(self, room: int) -> Example | None:
        """The next example, or its first `room` tokens; None: there is no more, or it does not fit."""
        ...


class Waiting:
    """Examples in a list.

    Attributes:
        divisible: whether an example may begin in one row and go on in the next.
    """

    def __init__(self, divisible: bool):
        self.divisible, self.examples = divisible, list[Example]()

    def fits(self, example: Example, length: int) -> bool:
        return self.divisible or len(example.tokens) <= length

    def take(self, room: int) -> Example | None:
        if not self.examples or (not self.divisible and len(self.examples[0].tokens) > room):
            return None
        first = self.examples.pop(0)
        if len(first.tokens) > room:
            self.examples.insert(0, Example(first.tokens[room:], max(0, first.given - room)))
        return Example(first.tokens[:room], min(first.given, room))


def packed(supply: Supply, length: int, tokenizer: Tokenizer, isolate: bool, shown: float = 1.0) -> Row:
    """A row of examples, until there are no more or the next does not fit.

    Args:
        isolate: number the documents of the row. If False, they have one number in a row with padding, and else none.
        shown: share of each prompt that is given.
    """
    tokens: list[int] = []
    weight: list[float] = []
    documents: list[int] = []
    number = 0
    while len(tokens) < length and (example := supply.take(length - len(tokens))) is not None:
        given = round(example.given * shown)
        tokens += example.tokens
        weight += [0.0] * given + [1.0] * (len(example.tokens) - given)
        documents += [number] * len(example.tokens)
        number += isolate
    missing = length - len(tokens)
    whole = not missing and (number <= 1 or not isolate)
    pad = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
    # padding is marked by position, since its id may be that of the EOS, which counts
    return Row(
        torch.tensor(tokens + [pad] * missing),
        torch.tensor(weight + [0.0] * missing),
        None if whole else torch.tensor(documents + [-1] * missing),
    )
