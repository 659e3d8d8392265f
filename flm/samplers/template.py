"""Text with holes: "The [8] sat on the [4]." is given text and 8, then 4, tokens to fill."""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields

from flm.ranges import Count, StepCounts


@dataclass(frozen=True)
class CanvasOptions:
    """The keys of a `sampling` config that say what is filled and what is given; configs/sampling/default.yaml explains them.
    All others are options of the sampler."""

    steps: StepCounts = (1, 8, 64)
    num_sample_batches: Count = 1
    length: Count | None = None
    prompt: str | None = None
    suffix: str | None = None
    infill: str | None = None
    film: bool = False


CANVAS_KEYS = tuple(field.name for field in fields(CanvasOptions))
_HOLE = re.compile(r"\[(\d+)\]")


def pieces_of(template: str, encode: Callable[[str], list[int]], name: str = "sampling.infill") -> list[list[int] | int]:
    """Given token ids and holes in reading order, for `Canvas.from_pieces`.

    Args:
        template: text with numbers of tokens to fill in brackets; brackets around anything else are text.
        encode: text to token ids; called on the text between holes, each stretch on its own.
        name: what errors call the template.

    Raises:
        ValueError: there is no hole, or one of 0 tokens.
    """
    parts = _HOLE.split(template)  # text, count, text, count, ..., text
    if len(parts) == 1:
        raise ValueError(f"{name}={template!r} has no hole: write the number of tokens to fill in brackets, [8]")
    if any(int(count) == 0 for count in parts[1::2]):
        raise ValueError(f"{name}={template!r} has a hole of 0 tokens: a hole needs at least 1")
    return [int(part) if index % 2 else encode(part) for index, part in enumerate(parts)]
