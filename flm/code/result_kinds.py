"""How results of mode=code_eval are read and shown."""

from typing import Annotated, Any

from pydantic import Field

from flm.results.files import Content, Count, EstimateContent, Text, checked
from flm.results.kinds import Cell, KeyNumber, Reading, ResultKind, Source, Table

_AtK = Annotated[dict[Text, EstimateContent], Field(max_length=50)]


class _Answers(Content):
    samples: Count
    pass_at: _AtK
    compiled_at: _AtK
    exact_match: EstimateContent
    suspicious: Count | None = None


class _CodeEval(Content):
    problems: Count
    options: Annotated[dict[Text, Any], Field(max_length=50)] = {}
    by_steps: Annotated[dict[Text, _Answers], Field(max_length=200)]


def read(source: Source) -> Reading:
    content = checked(_CodeEval, source.content)
    options = ", ".join(f"{key}={value}" for key, value in content.options.items())[:300] or None
    rows: list[dict[str, Cell]] = []
    numbers = []
    for steps, entry in content.by_steps.items():
        scores: dict[str, Cell] = {f"pass@{k}": value.estimate() for k, value in entry.pass_at.items()}
        scores |= {f"compiled@{k}": value.estimate() for k, value in entry.compiled_at.items()}
        scores["exact match"] = entry.exact_match.estimate()
        told: dict[str, Cell] = {} if entry.suspicious is None else {"suspicious": entry.suspicious}
        # in words where no model wrote
        by: Cell = int(steps) if steps.isdecimal() and len(steps) < 10 else steps
        rows.append(
            {"sampling": options, "steps": by, "problems": content.problems, "answers to each": entry.samples} | scores | told
        )
        setting = f"{steps} steps" if isinstance(by, int) else steps
        numbers += [KeyNumber(name, setting, value, "higher") for name, value in scores.items()]
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    table = Table("programs", columns, tuple(tuple(row.get(name) for name in columns) for row in rows))
    return Reading(tables=(table,), numbers=tuple(numbers))


CODE_EVAL = ResultKind(
    files=("code_eval.json",),
    read=read,
    heading="Programs",
    note="Run against the tests of each problem. pass@k is the chance that one of k answers passes, compiled@k that one is "
    "a program at all; exact match is to the reference, letter by letter. Suspicious answers pass beside their test and "
    "not apart from it: cheats, or programs whose values do not cross.",
)
