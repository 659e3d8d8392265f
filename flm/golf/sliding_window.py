"""Windows over a long text that score every target exactly once.

A window reads inputs start .. end-1 and scores some of its last targets, those no window before it has scored; where
windows overlap, each target (but the first ones) is predicted with at least window - stride tokens of context.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Inputs start .. end-1 are read, targets scored_from .. end-1 scored; target i follows input i in the text.

    Of a text of n tokens, input i is token i, target i is token i + 1, and there are n - 1 of each.
    """

    start: int
    scored_from: int
    end: int

    def __len__(self) -> int:
        """Inputs it reads."""
        return self.end - self.start

    @property
    def first_scored(self) -> int:
        """Where in the window, counted from its start, the scored targets begin."""
        return self.scored_from - self.start


def windows(total: int, length: int, stride: int) -> Iterator[Window]:
    """Windows over `total` targets; each target lies in exactly one window's scored part.

    Args:
        length: the most inputs a window reads.
        stride: from one start to the next, in [1, length]; `length` is evaluation without overlap.

    Raises:
        ValueError: the stride would leave targets out.
    """
    if not 1 <= stride <= length:
        raise ValueError(f"eval.stride must lie in [1, window length {length}], not {stride}")
    start = done = 0
    while done < total:
        end = min(start + length, total)
        yield Window(start, done, end)
        done, start = end, start + stride
