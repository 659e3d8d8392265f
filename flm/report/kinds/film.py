"""Reads film-<steps>.json of mode=sample_eval: one text at moments of its generation."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, StrictBool, StrictStr

from flm.results.files import Content, Count, Real, checked
from flm.results.kinds import Reading, ResultKind, Source


@dataclass(frozen=True)
class Frame:
    tau: float
    tokens: tuple[str, ...]
    probability: tuple[float, ...]  # of each shown token, [0, 1]
    given: tuple[bool, ...]


@dataclass(frozen=True)
class Film:
    source: Source
    steps: int
    frames: tuple[Frame, ...]
    columns: int | None = None  # tokens in a line of a board; None: a text, whose lines break anywhere

    def moments(self, count: int) -> list[Frame]:
        """At most so many frames, at least two, evenly spaced, the first and the last among them."""
        last = len(self.frames) - 1
        kept = {round(i * last / (count - 1)) for i in range(count)} if last >= count else range(last + 1)
        return [self.frames[index] for index in sorted(kept)]


class _Frame(Content):
    tau: Annotated[Real, Field(allow_inf_nan=False)]
    tokens: list[StrictStr]
    probability: list[Annotated[Real, Field(ge=0, le=1)]]
    given: list[StrictBool] | None = None


class _Film(Content):
    steps: Count
    columns: Annotated[Count, Field(ge=1)] | None = None
    frames: Annotated[list[_Frame], Field(min_length=1, max_length=1000)]


def read(source: Source) -> Reading:
    content = checked(_Film, source.content)
    frames = []
    for index, frame in enumerate(content.frames):
        given = frame.given or [False] * len(frame.tokens)
        if not len(frame.tokens) == len(frame.probability) == len(given):
            raise ValueError(f"frames.{index} has {len(frame.tokens)} tokens but {len(frame.probability)} probabilities")
        frames.append(Frame(frame.tau, tuple(frame.tokens), tuple(frame.probability), tuple(given)))
    return Reading(records=(Film(source, content.steps, tuple(frames), content.columns),))


KIND = ResultKind(files=("film-*.json",), read=read)
