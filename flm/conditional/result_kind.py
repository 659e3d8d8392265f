"""Scored responses: conditional_eval.json of mode=conditional_eval."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from flm.results.files import Content, Count, EstimateContent, Real, Text, checked
from flm.results.kinds import Cell, KeyNumber, Reading, ResultKind, Source, Table

_TITLES = {"bleu": "sentence BLEU", "rouge_l": "ROUGE-L", "bert_score": "BERTScore"}


class _Score(Content):
    mean: EstimateContent
    best: EstimateContent | None = None
    consensus: EstimateContent | None = None


class _Answers(Content):
    corpus_bleu: Real
    prompts: Count
    samples: Count


class _Conditional(Content):
    options: Annotated[dict[Text, Any], Field(max_length=50)] = {}
    by_steps: Annotated[dict[Text, Annotated[dict[Text, Any], Field(max_length=50)]], Field(max_length=200)]


class _Scores(Content):
    scores: dict[Text, _Score]


def read(source: Source) -> Reading:
    content = checked(_Conditional, source.content)
    rows, numbers = [], []
    for steps, entry in content.by_steps.items():
        found = checked(_Answers, entry)
        scores: dict[str, Cell] = {"corpus BLEU": found.corpus_bleu}
        named = {name: value for name, value in entry.items() if isinstance(value, Mapping)}
        for name, score in checked(_Scores, {"scores": named}).scores.items():
            title = _TITLES.get(name, name.replace("_", " "))
            scores[title] = score.mean.estimate()
            for way in ("best", "consensus") if found.samples > 1 else ():
                estimate = getattr(score, way)
                if estimate is not None:
                    scores[f"{title}, {way}"] = estimate.estimate()
        rows.append((options_in_words(content.options), steps_of(steps), found.prompts, found.samples, scores))
        numbers += [KeyNumber(title, f"{steps} steps", value, "higher") for title, value in scores.items()]
    return Reading(tables=(answers_table("responses", "prompts", rows),), numbers=tuple(numbers))


def answers_table(name: str, asked: str, rows: list[tuple[str | None, Cell, int, int, Mapping[str, Cell]]]) -> Table:
    """A row for each set of answers; the last of each row are its scores by name."""
    titles = list(dict.fromkeys(title for *_, scores in rows for title in scores))
    cells = tuple((*first, *(scores.get(title) for title in titles)) for *first, scores in rows)
    return Table(name, ("sampling", "steps", asked, "answers to each", *titles), cells)


def options_in_words(options: Mapping[str, Any]) -> str | None:
    return ", ".join(f"{key}={value}" for key, value in options.items())[:300] or None


def steps_of(text: str) -> Cell:
    """Of the sampler; in words where no model wrote."""
    return int(text) if text.isdecimal() and len(text) < 10 else text


KIND = ResultKind(
    files=("conditional_eval.json",),
    read=read,
    heading="Responses to prompts",
    note="Against one reference response each. A score of several answers to a prompt is their mean; where it says best, that "
    "of the answer nearest to the reference; where it says consensus, that of the answer nearest to the others, which needs no "
    "reference to choose. BLEU of the corpus is out of 100, all else out of 1.",
)
