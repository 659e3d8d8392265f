"""How results of mode=solve_eval are read and shown."""

from typing import Annotated, Any

from pydantic import Field

from flm.results.files import Content, Count, EstimateContent, Real, Text, checked
from flm.results.kinds import Cell, KeyNumber, Line, Plot, Reading, ResultKind, Source, Table

_Steps = Annotated[dict[Text, Any], Field(max_length=200)]


class _Solved(Content):
    solved: EstimateContent
    valid: EstimateContent
    consistent: EstimateContent
    agrees: EstimateContent
    pass_at: Annotated[dict[Text, EstimateContent], Field(max_length=50)]
    evaluations: Real | None = None
    ms_per_puzzle: Real | None = None


class _Written(Content):
    valid: EstimateContent
    distinct: Count | None = None
    entropy_nats: Real | None = None
    largest_share: Real | None = None
    held_out: Real | None = None
    evaluations: Real | None = None
    ms_per_answer: Real | None = None


class _Puzzles(Content):
    count: Count
    samples: Count
    by_steps: Annotated[dict[Text, _Solved], Field(max_length=200)]
    controls: Annotated[dict[Text, _Solved], Field(max_length=200)]


class _FromNothing(Content):
    count: Count
    space_nats: Real
    by_steps: Annotated[dict[Text, _Written], Field(max_length=200)]
    controls: Annotated[dict[Text, _Written], Field(max_length=200)]


class _SolveEval(Content):
    puzzles: _Puzzles | None = None
    written: _FromNothing | None = None


def read(source: Source) -> Reading:
    content = checked(_SolveEval, source.content)
    tables, plots, numbers = [], [], []
    if content.written is not None:
        table, drawn, found = _from_nothing(content.written)
        tables.append(table)
        plots += drawn
        numbers += found
    if content.puzzles is not None:
        table, drawn, found = _puzzles(content.puzzles)
        tables.append(table)
        plots += drawn
        numbers += found
    return Reading(tables=tuple(tables), plots=tuple(plots), numbers=tuple(numbers))


def _puzzles(found: _Puzzles) -> tuple[Table, list[Plot], list[KeyNumber]]:
    rows: list[dict[str, Cell]] = []
    for name, entry in {**found.by_steps, **found.controls}.items():
        row: dict[str, Cell] = {"steps, or control": name, "evaluations": entry.evaluations, "puzzles": found.count}
        row |= {key: getattr(entry, key).estimate() for key in ("solved", "valid", "consistent", "agrees")}
        if found.samples > 1:
            row |= {f"pass@{k}": value.estimate() for k, value in entry.pass_at.items()}
        rows.append(row | {"ms / puzzle": entry.ms_per_puzzle})
    numbers = [
        KeyNumber("puzzles solved, share", _calls(entry.evaluations, name), entry.solved.estimate(), "higher")
        for name, entry in found.by_steps.items()
    ]
    ideal = _ideal({name: entry.solved for name, entry in found.controls.items()})
    points = [(entry.evaluations, entry.ms_per_puzzle, entry.solved.mean) for entry in found.by_steps.values()]
    return _table("puzzles_solved", rows), _plots("solved", "puzzles solved, share", points, ideal), numbers


def _from_nothing(found: _FromNothing) -> tuple[Table, list[Plot], list[KeyNumber]]:
    rows: list[dict[str, Cell]] = []
    for name, entry in {**found.by_steps, **found.controls}.items():
        rows.append(
            {
                "steps, or control": name,
                "evaluations": entry.evaluations,
                "answers": found.count,
                "valid": entry.valid.estimate(),
                "distinct": entry.distinct,
                "entropy, nats": entry.entropy_nats,
                "entropy of all there are": found.space_nats,
                "share of the most frequent": entry.largest_share,
                "share held out": entry.held_out,
                "ms / answer": entry.ms_per_answer,
            }
        )
    numbers = [
        KeyNumber("valid from nothing, share", _calls(entry.evaluations, name), entry.valid.estimate(), "higher")
        for name, entry in found.by_steps.items()
    ]
    ideal = _ideal({name: entry.valid for name, entry in found.controls.items()})
    points = [(entry.evaluations, entry.ms_per_answer, entry.valid.mean) for entry in found.by_steps.values()]
    return _table("written_from_nothing", rows), _plots("written", "valid answers from nothing, share", points, ideal), numbers


def _calls(evaluations: float | None, steps: str) -> str:
    if evaluations is None:
        return f"{steps} steps"
    return f"{evaluations:g} evaluation{'s' * (evaluations != 1)}"


def _table(name: str, rows: list[dict[str, Cell]]) -> Table:
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    return Table(name, columns, tuple(tuple(row.get(key) for key in columns) for row in rows)).without_empty_columns()


def _plots(
    name: str, title: str, points: list[tuple[float | None, float | None, float]], ideal: dict[int, float]
) -> list[Plot]:
    """A plot over network evaluations, with ideal masked diffusion as reference, and one over milliseconds."""
    drawn = []
    for axis, key, x_label in ((0, "evaluations", "network evaluations"), (1, "ms", "milliseconds an answer")):
        found = sorted((point[axis], point[2]) for point in points if point[axis])
        if found:
            x, y = zip(*found, strict=True)
            lines = [Line("", x, y)]
            if ideal and key == "evaluations":
                lines.append(Line("ideal masked diffusion", tuple(ideal), tuple(ideal.values()), is_reference=True))
            drawn.append(Plot(f"{name}_by_{key}", title, x_label, "share", tuple(lines), x_is_log=True))
    return drawn


def _ideal(controls: dict[str, EstimateContent]) -> dict[int, float]:
    """Shares of ideal masked diffusion by evaluations."""
    found = {name.rpartition(" ")[2]: value.mean for name, value in controls.items() if name.startswith("ideal masked")}
    return dict(sorted((int(steps), mean) for steps, mean in found.items() if steps.isdecimal() and len(steps) < 10))


SOLVE_EVAL = ResultKind(
    files=("solve_eval.json",),
    read=read,
    heading="Puzzles",
    note="Answers checked by the rules. Solved is valid with every clue kept; agrees is equal to one reference answer. An "
    "evaluation is one call of a network. Beside answers from nothing stands how many different ones there are: a model that "
    "repeats one valid answer has an entropy near 0.",
)
