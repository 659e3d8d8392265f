"""Rates of right answers to puzzles, and how much of the space of solutions they cover."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict
from typing import Any

from flm.measures.estimate import Estimate, mean_pass_at_k
from flm.puzzles.rules import Puzzle, Rules, Verdict


def verdicts_on(puzzles: Sequence[Puzzle], answers: Sequence[Sequence[str]], rules: Rules) -> list[list[Verdict]]:
    """The verdicts on every answer to every puzzle."""
    return [
        [rules.check(puzzle.givens, answer, puzzle.answer) for answer in given]
        for puzzle, given in zip(puzzles, answers, strict=True)
    ]


def solve_rates(
    verdicts: Sequence[Sequence[Verdict]], ks: Sequence[int], groups: Sequence[Hashable] | None = None
) -> dict[str, Any]:
    """Shares with standard errors over puzzles, of which each has the mean of its equally many answers; and pass@k.

    Args:
        groups: of the puzzles. Errors are over groups, since a model does alike on puzzles of one solution. None: over puzzles.
    """

    def rate(read: Callable[[Verdict], bool | None]) -> dict[str, Any]:
        return asdict(Estimate.grouped([sum(bool(read(v)) for v in given) / len(given) for given in verdicts], groups))

    return {
        "solved": rate(lambda v: v.solved),
        "valid": rate(lambda v: v.valid),
        "consistent": rate(lambda v: v.consistent),
        "agrees": rate(lambda v: v.agrees),
        "pass_at": {
            k: asdict(value)
            for k, value in mean_pass_at_k([[v.solved for v in given] for given in verdicts], ks, groups).items()
        },
    }


def coverage(answers: Sequence[str], rules: Rules, is_held_out: Callable[[str], bool] | None = None) -> dict[str, Any]:
    """The share of valid answers, and their diversity.

    Args:
        is_held_out: whether an answer is held out from training; None: none is.

    Returns:
        valid: share of valid answers. Of these: distinct, the number of different ones; entropy_nats, the entropy of their
        frequencies; largest_share, the share of the most frequent one; held_out, the share of held-out ones.
    """
    valid = [answer for answer in answers if rules.valid(answer)]
    counts, right = Counter(valid), set(valid)
    total = len(valid)
    return {
        "valid": asdict(Estimate.of([float(answer in right) for answer in answers])),
        "distinct": len(counts),
        "entropy_nats": sum(c / total * math.log(total / c) for c in counts.values()) if valid else None,
        "largest_share": max(counts.values()) / total if valid else None,
        "held_out": sum(map(is_held_out, valid)) / total if valid and is_held_out is not None else None,
    }
