"""data=permutation: every symbol once, in any order."""

import math
import random
import string
from itertools import permutations
from typing import Annotated, Any

from annotated_types import Ge, Le

from flm.puzzles.corpus import PuzzleCorpus
from flm.puzzles.rules import HOLE, Rules
from flm.ranges import Index

_LISTED = 8  # 8! = 40,320; longer ones are drawn


class PermutationRules(Rules):
    """Every symbol occurs exactly once."""

    def __init__(self, size: int):
        self.symbols = string.ascii_lowercase[:size]

    def valid(self, answer: str) -> bool:
        return sorted(answer) == list(self.symbols)

    def solve(self, givens: str, limit: int = 2) -> list[str]:
        missing = [symbol for symbol in self.symbols if symbol not in givens]
        found: list[str] = []
        for order in permutations(missing, givens.count(HOLE)):
            left = iter(order)
            answer = "".join(next(left) if given == HOLE else given for given in givens)
            if self.valid(answer):
                found.append(answer)
            if len(found) == limit or not self.valid(answer):
                break
        return found

    def propagate(self, givens: str) -> str:
        missing = [symbol for symbol in self.symbols if symbol not in givens]
        return givens.replace(HOLE, missing[0]) if givens.count(HOLE) == len(missing) == 1 else givens


class Permutation(PuzzleCorpus):
    """Permutations of the first letters of the alphabet, all equally likely.

    All are equal up to relabelling, so there are no families: held-out ones are just other permutations.

    Args:
        size: letters, 2 to 26.
        clues: letters that a puzzle gives, in random places.
        rest: as `PuzzleCorpus`.
    """

    def __init__(self, size: Annotated[int, Ge(2), Le(26)] = 6, clues: Index = 2, **rest: Any):
        super().__init__(**rest)
        if not 0 <= clues < size:
            raise ValueError(f"data.clues must be in [0, {size}), not {clues}")
        self.size, self.clues, self.rules = size, clues, PermutationRules(size)

    def draw(self, rng: random.Random) -> str:
        return "".join(rng.sample(self.rules.symbols, self.size))

    def givens_of(self, answer: str, rng: random.Random) -> str:
        kept = set(rng.sample(range(self.size), self.clues))
        return "".join(symbol if place in kept else HOLE for place, symbol in enumerate(answer))

    def everything(self) -> list[str] | None:
        return ["".join(order) for order in permutations(self.rules.symbols)] if self.size <= _LISTED else None

    def space_size(self) -> int:
        return math.factorial(self.size)

    def describe(self) -> str:
        return f"permutations of {self.size}"
