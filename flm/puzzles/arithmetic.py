"""data=arithmetic: sums, products and suffix sums, digit by digit."""

import random
import re
from collections.abc import Callable, Hashable
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from flm.puzzles.corpus import PuzzleCorpus
from flm.puzzles.rules import HOLE, Rules
from flm.ranges import Index

_SIGNS = {"sum": "+", "product": "*"}


class ArithmeticRules(Rules):
    """The digits after = are the result of the question before it."""

    def __init__(self, operation: str, digits: int, reverse: bool):
        self.symbols = "0123456789"
        self.operation, self.digits, self.reverse = operation, digits, reverse
        sign = re.escape(_SIGNS.get(operation, ""))
        side = rf"([0-9]{{{digits}}})"
        self._question = re.compile(f"{side}=" if operation == "suffix_sums" else f"{side}{sign}{side}=")

    def completed(self, question: str) -> str:
        """A question, which ends in =, followed by its answer."""
        match = self._question.fullmatch(question)
        assert match is not None, question
        numbers = match.groups()
        answer = _ANSWERS[self.operation](self.digits, *numbers)
        return question + (answer[::-1] if self.reverse else answer)

    def valid(self, answer: str) -> bool:
        question = answer[: answer.find("=") + 1]
        return self._question.fullmatch(question) is not None and self.completed(question) == answer

    def solve(self, givens: str, limit: int = 2) -> list[str]:
        return [self.completed(givens.rstrip(HOLE))]


class Arithmetic(PuzzleCorpus):
    """Calculations with numbers of a fixed width, padded with zeros.

    a+b and b+a are one family; each family is held out at random.

    Args:
        operation: sum: `12+99=111`. product: `12*99=1188`. suffix_sums: `5192=7212`, where each digit of the answer is the sum
            modulo 10 of the digits from its place on.
        digits: of each number.
        reverse: write the answer from its last digit to its first, so that each digit needs only the carry before it.
        carry_chain: draw only sums in which a carry runs through at least this many digits; 0: all.
        rest: as `PuzzleCorpus`.
    """

    def __init__(
        self,
        operation: Literal["sum", "product", "suffix_sums"] = "suffix_sums",
        digits: Annotated[int, Ge(1), Le(1000)] = 8,
        reverse: bool = False,
        carry_chain: Index = 0,
        **rest: Any,
    ):
        super().__init__(**rest)
        if not 0 <= carry_chain <= (digits if operation == "sum" else 0):
            raise ValueError(f"data.carry_chain must be in [0, data.digits] for sums and 0 for others, not {carry_chain}")
        self.operation, self.digits, self.reverse, self.carry_chain = operation, digits, reverse, carry_chain
        self.rules = ArithmeticRules(operation, digits, reverse)

    def draw(self, rng: random.Random) -> str:
        first, second = ([rng.randrange(10) for _ in range(self.digits)] for _ in range(2))
        if self.carry_chain:  # a carry begins at a random place, and the digits after it pass it on
            start = rng.randrange(self.carry_chain - 1, self.digits)
            for place in range(start - self.carry_chain + 1, start):
                second[place] = 9 - first[place]
            first[start] = rng.randrange(1, 10)
            second[start] = rng.randrange(10 - first[start], 10)
        sides = ["".join(map(str, side)) for side in (first, second)]
        if self.operation == "suffix_sums":
            return self.rules.completed(f"{sides[0]}=")
        return self.rules.completed(f"{sides[0]}{_SIGNS[self.operation]}{sides[1]}=")

    def givens_of(self, answer: str, rng: random.Random) -> str:
        question, _, result = answer.partition("=")
        return f"{question}={HOLE * len(result)}"

    def family(self, answer: str) -> Hashable:
        return tuple(sorted(re.findall("[0-9]+", answer.partition("=")[0])))

    def describe(self) -> str:
        return f"{self.operation.replace('_', ' ')} of {self.digits} digits"


def _suffix_sums(digits: int, number: str) -> str:
    return "".join(str(sum(map(int, number[place:])) % 10) for place in range(digits))


_ANSWERS: dict[str, Callable[..., str]] = {
    "sum": lambda digits, a, b: f"{int(a) + int(b):0{digits + 1}}",
    "product": lambda digits, a, b: f"{int(a) * int(b):0{2 * digits}}",
    "suffix_sums": _suffix_sums,
}
