"""Names for the ranges of arguments. They annotate constructors that configs name, and `flm.schema` enforces them.

A number is finite, and true is no number. Ranges without a name are written out, `Annotated[float, Gt(0), Lt(1)]`.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt, MinLen

Count = Annotated[int, Ge(1)]  # a whole number of at least 1
Index = Annotated[int, Ge(0)]  # a whole number of at least 0: an id, a number of steps that may be none
Width = Annotated[int, Ge(1), Le(1 << 16)]  # of layers; beyond it a single matrix takes more memory than any machine has
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Scale = Annotated[float, Gt(0), Le(1e6)]  # of numbers inside a network, where more would overflow
Bounded = Annotated[float, Ge(0), Le(1e6)]  # a divisor of logits, or a penalty subtracted from them
Rate = Annotated[float, Gt(0), Le(100)]  # a learning rate
Share = Annotated[float, Ge(0), Le(1)]
PositiveShare = Annotated[float, Gt(0), Le(1)]
BelowOne = Annotated[float, Ge(0), Lt(1)]
OpenShare = Annotated[float, Gt(0), Lt(1)]  # neither end


@dataclass(frozen=True)
class Where:
    """Metadata of an annotation: a further condition on the value, and its words in an error ("a multiple of 2")."""

    holds: Callable[[Any], bool]
    says: str


@dataclass(frozen=True)
class CalledWith:
    """Metadata of a callable argument: the keywords that its caller passes, which a config must not give."""

    names: frozenset[str]

    @classmethod
    def of(cls, *names: str) -> "CalledWith":
        return cls(frozenset(names))


DIFFERENT = Where(lambda values: len(set(values)) == len(values), "all different")


@dataclass(frozen=True)
class OfVocabulary:
    """Metadata of a token id: it must be below the number of tokens, which is known once there is a model."""


TokenId = Annotated[int, Ge(0), OfVocabulary()]
Text = Annotated[str, Where(lambda text: bool(text.strip()), "text that is not empty")]
Folder = Annotated[
    str | os.PathLike[str],
    Where(lambda path: takes_files(path), "a folder to write to: not read-only, on no full disk, no file in its way"),
]
Existing = Annotated[str | os.PathLike[str], Where(lambda path: is_there(path), "a file or folder that is there")]


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file or folder of that name that this process may see."""
    try:
        return bool(str(path).strip()) and os.path.exists(path)
    except ValueError:  # a null byte in the name
        return False


def takes_files(path: str | os.PathLike[str]) -> bool:
    """Whether files could be written to a folder, which need not exist yet. Nothing is created."""
    try:
        if not str(path).strip():
            return False
        place = os.path.abspath(path)
        while not os.path.lexists(place):
            place = os.path.dirname(place)
        disk = os.statvfs(place)
        has_room = not disk.f_blocks or (disk.f_bavail if os.geteuid() else disk.f_bfree) > 0  # some systems count nothing
        return os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK) and has_room
    except (OSError, ValueError):
        return False


def one_of(choices: Iterable[str]) -> Where:
    """Text that is one of the names of a table."""
    names = tuple(choices)
    return Where(lambda value: value in names, f"one of {', '.join(names)}")


MOST_POSITIONS = 1 << 20
Length = Annotated[int, Ge(1), Le(MOST_POSITIONS)]  # of a text
Few = Annotated[int, Ge(1), Le(10**6)]  # of things that each take memory: samples, batches
Steps = Annotated[int, Ge(1), Le(10**7)]  # of sampling, whose times are held in a list
StepCounts = Steps | Annotated[Sequence[Steps], MinLen(1), DIFFERENT]  # one number of steps, or several to compare
