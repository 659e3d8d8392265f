"""Windows over a long text that score every target exactly once.

A window scores those of its targets that no earlier window has scored. Each target after the first window is predicted from
at least length - stride tokens of context.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A window reads inputs start .. end-1 and scores targets scored_from .. end-1.

    Input i is token i of the text, and target i is token i + 1. A text of n tokens has n - 1 of each.
    """

    start: int
    scored_from: int
    end: int

    def __len__(self) -> int:
        """The number of inputs that the window reads."""
        return self.end - self.start

    @property
    def first_scored(self) -> int:
        """Index of the first scored target within the window."""
        return self.scored_from - self.start


def windows(total: int, length: int, stride: int) -> Iterator[Window]:
    """Windows over `total` targets, each of which is scored in exactly one window.

    Args:
        length: the most inputs of a window.
        stride: inputs from one window's start to the next, in [1, length]. With stride = length windows do not overlap.

    Raises:
        ValueError: the stride is not in [1, length].
    """
    if not 1 <= stride <= length:
        raise ValueError(f"eval.stride must lie in [1, window length {length}], not {stride}")
    start = done = 0
    while done < total:
        end = min(start + length, total)
        yield Window(start, done, end)
        done, start = end, start + stride
