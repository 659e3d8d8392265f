"""Puzzles, rules that check answers to them, and verdicts."""

from collections.abc import Callable
from typing import Any, NamedTuple

HOLE = "."  # marks, in givens, a position to be written; it occurs in no answer


class Puzzle(NamedTuple):
    """What is given, and one right answer.

    In puzzles with one token per symbol, both are strings of the same length, and `givens` has a HOLE at each position to be
    written. In others `givens` is a question and `answer` one text that answers it.
    """

    givens: str
    answer: str


class Verdict(NamedTuple):
    """What is known of an answer.

    Attributes:
        valid: it obeys the rules, whatever was given.
        consistent: it did not change what was given.
        agrees: it equals the reference answer; None: there is no reference.
    """

    valid: bool
    consistent: bool
    agrees: bool | None

    @property
    def solved(self) -> bool:
        return self.valid and self.consistent


class Rules:
    """Base of rules: subclasses define `valid`, and may define `solve` and `propagate`.

    Attributes:
        symbols: that may fill a hole, in order.
    """

    symbols = ""

    def check(self, givens: str, answer: str, reference: str | None = None) -> Verdict:
        """The verdict on an answer; `givens` as in `Puzzle`."""
        kept = len(givens) == len(answer) and all(a in (HOLE, b) for a, b in zip(givens, answer, strict=True))
        return Verdict(self.valid(answer), kept, None if reference is None else answer == reference)

    def valid(self, answer: str) -> bool:
        """Whether an answer obeys the rules, for any string."""
        raise NotImplementedError

    def use(self, sandbox: Callable[[], Any]) -> None:
        """Called with a factory of sandboxes before answers are checked, for rules that run programs."""

    def solve(self, givens: str, limit: int = 2) -> list[str] | None:
        """Up to `limit` different solutions by search, all of them if there are fewer; None: there is no solver."""
        return None

    def propagate(self, givens: str) -> str | None:
        """The givens with everything that follows without search; None: not implemented for these rules."""
        return None
