"""Text with holes: "The [8] sat on the [4]." is given text and 8, then 4, tokens to fill; [[ and ]] are brackets of text."""

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
_MARK = re.compile(r"\[\[|\]\]|\[([0-9]+)\]")


def pieces_of(template: str, encode: Callable[[str], list[int]], name: str = "sampling.infill") -> list[list[int] | int]:
    """Given token ids and holes in reading order, for `Canvas.from_pieces`.

    Args:
        template: text with numbers of tokens to fill in brackets. Brackets around anything else are text, and [[ and ]] are
            one bracket of it, so that [[8]] is the text [8].
        encode: text to token ids; called on the text between holes, each stretch on its own.
        name: what errors call the template.

    Raises:
        ValueError: there is no hole, or one of 0 tokens.
    """
    texts, holes, start = [""], [], 0
    for mark in _MARK.finditer(template):
        texts[-1] += template[start : mark.start()]
        start = mark.end()
        if mark.group(1) is None:
            texts[-1] += mark.group()[0]
        else:
            holes.append(_length(mark.group(1), template, name))
            texts.append("")
    texts[-1] += template[start:]
    if not holes:
        raise ValueError(f"{name}={template!r} has no hole: write the number of tokens to fill in brackets, [8]")
    pieces: list[list[int] | int] = [encode(texts[0])]
    for hole, text in zip(holes, texts[1:], strict=True):
        pieces += [hole, encode(text)]
    return pieces


def _length(digits: str, template: str, name: str) -> int:
    if len(digits) > 9:
        raise ValueError(f"{name}: a hole of [{digits[:9]}...] tokens is longer than any text")
    if int(digits) == 0:
        raise ValueError(f"{name}={template!r} has a hole of 0 tokens: a hole needs at least 1")
    return int(digits)
