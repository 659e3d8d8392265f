"""A puzzle, and what says whether an answer to it is right."""

from collections.abc import Callable
from typing import Any, NamedTuple

HOLE = "."  # in givens, a position to be written; no answer may hold it


class Puzzle(NamedTuple):
    """What is given and one answer.

    Of puzzles written symbol by symbol both are strings of one length, and `givens` has a HOLE where the answer is to be
    written. Otherwise `givens` is a question, and `answer` what may follow it.
    """

    givens: str
    answer: str


class Verdict(NamedTuple):
    """What is known of an answer.

    Attributes:
        valid: it keeps the rules, whatever was given.
        consistent: it leaves what was given as it was.
        agrees: it is the reference answer; None where there is no reference.
    """

    valid: bool
    consistent: bool
    agrees: bool | None

    @property
    def solved(self) -> bool:
        return self.valid and self.consistent


class Rules:
    """Base of checkers: subclasses give `valid`, and `solve` and `propagate` where somebody wrote them.

    Attributes:
        symbols: what may stand in a hole, in order.
    """

    symbols = ""

    def check(self, givens: str, answer: str, reference: str | None = None) -> Verdict:
        """The verdict on an answer; `givens` as in `Puzzle`."""
        kept = len(givens) == len(answer) and all(a in (HOLE, b) for a, b in zip(givens, answer, strict=True))
        return Verdict(self.valid(answer), kept, None if reference is None else answer == reference)

    def valid(self, answer: str) -> bool:
        """Whether an answer keeps the rules; nothing is assumed of the string."""
        raise NotImplementedError

    def use(self, sandbox: Callable[[], Any]) -> None:
        """Told what makes a sandbox, by who is about to check answers; for rules that run programs."""

    def solve(self, givens: str, limit: int = 2) -> list[str] | None:
        """Up to `limit` different solved answers by search, all there are if fewer; None: nobody wrote a solver."""
        return None

    def propagate(self, givens: str) -> str | None:
        """The givens with what follows without search; None: nobody wrote that."""
        return None
