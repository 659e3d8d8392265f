"""data=countdown: calculations that reach a target from given numbers, each used once."""

import random
import re
from collections import Counter
from collections.abc import Hashable, Iterator
from itertools import combinations
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from flm.puzzles.corpus import PuzzleCorpus
from flm.puzzles.rules import HOLE, Rules

Number = Annotated[int, Ge(1), Le(10**9)]
PAD = "_"
_QUESTION = re.compile(r"([1-9][0-9]*(?:,[1-9][0-9]*)*)>([1-9][0-9]*):")
_STEP = re.compile(r"([1-9][0-9]*)([-+*/])([1-9][0-9]*)=([1-9][0-9]*)")
_LONGEST = {3: 24, 4: 32, 5: 54}  # characters of an answer


class CountdownRules(Rules):
    """`3,5,7>26:7*3=21,21+5=26`: every number and every intermediate result is used once; all are positive integers."""

    symbols = "0123456789+-*/=," + PAD

    def valid(self, answer: str) -> bool:
        question, _, steps = answer.partition(":")
        match = _QUESTION.fullmatch(question + ":")
        if match is None:
            return False
        numbers, target = match[1].split(","), match[2]
        left, written = Counter(numbers), steps.rstrip(PAD).split(",")
        if len(written) != len(numbers) - 1:
            return False
        for step in written:
            parts = _STEP.fullmatch(step)
            if parts is None or applied(int(parts[1]), parts[2], int(parts[3])) != int(parts[4]):
                return False
            left.subtract((parts[1], parts[3]))
            if min(left.values()) < 0:
                return False
            left[parts[4]] += 1
        return +left == Counter([target])

    def solve(self, givens: str, limit: int = 2) -> list[str]:
        question = givens[: givens.index(":") + 1]
        match = _QUESTION.fullmatch(question)
        assert match is not None, givens
        found: list[str] = []
        for steps in solutions([int(n) for n in match[1].split(",")], int(match[2])):
            answer = (question + ",".join(steps)).ljust(len(givens), PAD)
            if answer not in found:
                found.append(answer)
            if len(found) == limit:
                break
        return found


class Countdown(PuzzleCorpus):
    """Countdown, solvable by construction: the target is the last result of random operations on random numbers.

    A family is all orders of the same numbers with the same target.

    Args:
        count: how many numbers, 3 to 5.
        largest: the largest given number.
        targets: the smallest and the largest target.
        rest: as `PuzzleCorpus`.
    """

    def __init__(
        self, count: Literal[3, 4, 5] = 3, largest: Number = 99, targets: tuple[Number, Number] = (10, 100), **rest: Any
    ):
        super().__init__(**rest)
        low, high = targets
        if low > high:
            raise ValueError(f"data.targets must be in order, not {list(targets)}")
        self.count, self.largest, self.targets, self.rules = count, largest, (low, high), CountdownRules()
        question = count * (len(str(largest)) + 1) + len(str(high)) + 1
        self.length = question + _LONGEST[count]

    def draw(self, rng: random.Random) -> str:
        while True:
            numbers = [rng.randint(1, self.largest) for _ in range(self.count)]
            left, steps = list(numbers), []
            while len(left) > 1:
                a, b = sorted(rng.sample(left, 2), reverse=True)
                sign = rng.choice("+-*/")
                result = applied(a, sign, b)
                if result is None:
                    break
                left.remove(a)
                left.remove(b)
                left.append(result)
                steps.append(f"{a}{sign}{b}={result}")
            answer = f"{','.join(map(str, numbers))}>{left[0]}:{','.join(steps)}"
            if len(left) == 1 and self.targets[0] <= left[0] <= self.targets[1] and len(answer) <= self.length:
                return answer.ljust(self.length, PAD)

    def givens_of(self, answer: str, rng: random.Random) -> str:
        question, _, steps = answer.partition(":")
        return f"{question}:{HOLE * len(steps)}"

    def family(self, answer: str) -> Hashable:
        numbers, _, target = answer.partition(":")[0].partition(">")
        return tuple(sorted(numbers.split(","))), target

    def describe(self) -> str:
        return f"countdown with {self.count} numbers"


def applied(a: int, sign: str, b: int) -> int | None:
    """The result; None if it is not a positive integer."""
    if sign == "/":
        return None if a % b else a // b
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return result if result > 0 else None


def solutions(numbers: list[int], target: int) -> Iterator[tuple[str, ...]]:
    """All sequences of steps to the target, with the larger number first in each; some occur more than once."""
    if len(numbers) == 1:
        if numbers[0] == target:
            yield ()
        return
    for i, j in combinations(range(len(numbers)), 2):
        rest = [number for place, number in enumerate(numbers) if place not in (i, j)]
        a, b = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
        for sign in "+-*/":
            result = applied(a, sign, b)
            if result is not None:
                for steps in solutions([*rest, result], target):
                    yield f"{a}{sign}{b}={result}", *steps
