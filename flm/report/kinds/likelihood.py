"""Reads likelihood.json of mode=ppl_eval: exact likelihoods, or bounds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from flm.measures.estimate import Estimate
from flm.results.files import Content, Count, Real, Text, checked
from flm.results.kinds import KeyNumber, Number, Reading, ResultKind, Source

_SPAN = re.compile(r"t (\d\.\d+) to (\d\.\d+)")
_POINT = re.compile(r".{0,200} at t (\d\.\d+)")


@dataclass(frozen=True)
class Likelihood:
    """One corpus under one bound of one model.

    Attributes:
        variant: which of the model's bounds; "": there is only one.
        is_chosen: whether it is the only bound, or the one that was lowest on training text.
        bound: kind of the number, in words: exact, or the kind of upper bound.
        nats_per_token: mean and standard error over sequences.
        monte_carlo_error: of the mean over draws, in nats per token; None: not known.
        parts: nats per token by part of the bound, None for a part without draws; empty if the bound has no parts.
        spans: (low, high, nats per token) of the parts on the axis of physical time t; low = high for a point.
    """

    source: Source
    corpus: str
    variant: str
    is_chosen: bool
    bound: str
    nats_per_token: Estimate
    monte_carlo_error: float | None
    perplexity: float
    bits_per_byte: float | None
    bits_per_character: float | None
    parts: Mapping[str, float | None]
    spans: tuple[tuple[float, float, float], ...]

    def with_error(self, bits: float | None) -> Number:
        """Bits with their standard error, whose relative size is that of the nats."""
        nats = self.nats_per_token
        if bits is None or nats.standard_error is None or nats.mean <= 0:
            return bits
        return Estimate(bits, bits * nats.standard_error / nats.mean, nats.count)


class _Values(Content):
    nats_per_token: Real
    standard_error_nats: Real | None
    sequences: Count
    perplexity: Real
    monte_carlo_error_nats: Real | None = None
    bits_per_byte: Real | None = None
    bits_per_character: Real | None = None
    parts_nats_per_token: Annotated[dict[Text, Real | None], Field(max_length=500)] | None = None


class _Corpus(Content):
    variants: Annotated[dict[Text, _Values], Field(max_length=50)]
    corpus: Text | None = None


class _Likelihood(Content):
    kind: Text
    chosen: Text | None = None
    corpora: Annotated[dict[Text, _Corpus], Field(max_length=200)]


class _File(Content):
    likelihood: _Likelihood


def read(source: Source) -> Reading:
    """One record for each corpus and each of the model's bounds."""
    content, found = checked(_File, source.content).likelihood, []
    for name, entry in content.corpora.items():
        for index, (variant, values) in enumerate(entry.variants.items()):
            parts = values.parts_nats_per_token or {}
            record = Likelihood(
                source=source,
                # the user's name of the corpus; the task's own name "data" says less than the corpus's description
                corpus=entry.corpus or name if name == "data" else name,
                variant=variant if len(entry.variants) > 1 else "",
                is_chosen=variant == content.chosen if content.chosen in entry.variants else index == 0,
                bound=content.kind,
                nats_per_token=Estimate(values.nats_per_token, values.standard_error_nats, values.sequences),
                monte_carlo_error=values.monte_carlo_error_nats,
                perplexity=values.perplexity,
                bits_per_byte=values.bits_per_byte,
                bits_per_character=values.bits_per_character,
                parts=parts,
                spans=_spans(parts),
            )
            found.append(record)
    return Reading(numbers=tuple(_numbers(found)), records=tuple(found))


def _numbers(records: list[Likelihood]) -> list[KeyNumber]:
    found = []
    for row in (row for row in records if row.is_chosen):
        how = row.corpus if row.bound == "exact" else f"{row.corpus}, {row.bound}"
        if row.bits_per_byte is not None:
            found.append(KeyNumber("bits per byte", how, row.with_error(row.bits_per_byte), "lower"))
        if row.bits_per_character is not None:
            found.append(KeyNumber("bits per character", how, row.with_error(row.bits_per_character), "lower"))
        found.append(KeyNumber("nats per token", how, row.nats_per_token, "lower"))
    return found


def _spans(parts: Mapping[str, float | None]) -> tuple[tuple[float, float, float], ...]:
    """The parts named "t 0.100 to 0.200" or "... at t 0.950", sorted by t."""
    spans = []
    for name, nats in parts.items():
        if nats is None:
            continue
        if match := _SPAN.fullmatch(name):
            spans.append((float(match[1]), float(match[2]), nats))
        elif match := _POINT.fullmatch(name):
            spans.append((float(match[1]), float(match[1]), nats))
    return tuple(sorted(spans))


KIND = ResultKind(files=("likelihood*.json",), read=read)
