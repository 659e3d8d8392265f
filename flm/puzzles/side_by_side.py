"""mode=side_by_side: results of mode=solve_eval as one small table, and an answer written in one evaluation.

Training seconds are those of the runs that made the checkpoints, a teacher's included, where these lie beside them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from omegaconf import DictConfig
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from flm.puzzles.solve_tables import percent
from flm.ranges import Text
from flm.results.files import read_json, read_result


@dataclass(frozen=True)
class Run:
    """A result file with what else is known of the model.

    Attributes:
        seconds: of training, its teachers' included; None where the runs are not there.
    """

    path: Path
    label: str
    content: Mapping[str, Any]
    seconds: float | None

    def entries(self, part: str) -> dict[float, Mapping[str, Any]]:
        """What was measured, by network evaluations; nothing of a part that was not."""
        return {entry["evaluations"]: entry for entry in (self.content.get(part) or {"by_steps": {}})["by_steps"].values()}


@dataclass(frozen=True)
class SideBySideOptions:
    """The `side_by_side` config; keys explained there."""

    runs: Annotated[Sequence[Text], MinLen(1)]


def side_by_side(config: DictConfig) -> list[dict[str, Any]]:
    """Prints the table of side_by_side.runs: folders with a solve_eval.json, or such files. Returns their contents."""
    wanted = config.side_by_side.runs
    if isinstance(wanted, str) or not wanted:
        raise ValueError(f"side_by_side.runs must be a list of folders with solve_eval.json, not {wanted}")
    runs = [read(Path(path)) for path in wanted]
    console = Console()
    for part, rate, title in (("written", "valid", "written from nothing"), ("puzzles", "solved", "puzzles solved")):
        if any(run.entries(part) for run in runs):
            console.print(table_of(runs, part, rate, title))
    for run in runs:
        found = one_evaluation(run)
        if found is not None:
            console.print(Panel.fit(found, title=f"{run.label}, one evaluation"))
            break
    return [dict(run.content) for run in runs]


def read(path: Path) -> Run:
    """Raises ValueError where there is no such result."""
    path = path / "solve_eval.json" if path.is_dir() else path
    content = read_result(path, "solve_eval")
    checkpoint = Path((content.get("checkpoint") or {}).get("path", ""))
    return Run(path, content["label"], content, training_seconds(checkpoint.parent.parent))


def training_seconds(run: Path) -> float | None:
    """From the beginning of a run to its last checkpoint, and the same of its teacher; None where files are missing."""
    begin, end = run / "run.json", run / "checkpoints/last.ckpt"
    if not (begin.is_file() and end.is_file()):
        return None
    seconds = end.stat().st_mtime - begin.stat().st_mtime
    teacher = ((read_json(begin).get("config") or {}).get("algo") or {}).get("teacher_path")
    return seconds + (training_seconds(Path(teacher).parent.parent) or 0.0) if teacher else seconds


def table_of(runs: Sequence[Run], part: str, rate: str, title: str) -> Table:
    """A row for each model: per cent by network evaluations, training time, and what the last number of them is like."""
    evaluations = sorted({count for run in runs for count in run.entries(part)})
    table = Table(title=f"{title}: % {rate} by network evaluations")
    for heading in ("", "training, s", *(f"{count:g}" for count in evaluations)):
        table.add_column(heading, justify="right", no_wrap=True)
    if part == "written":
        table.add_column("distinct", justify="right")
    for run in runs:
        found = run.entries(part)
        shares = [percent(found[count][rate]) if count in found else "" for count in evaluations]
        seconds = "" if run.seconds is None else f"{run.seconds:.0f}"
        spread = [str(list(found.values())[-1]["distinct"])] if part == "written" and found else []
        table.add_row(run.label, seconds, *shares, *spread)
    controls: dict[str, dict[str, Any]] = {}
    for run in runs:
        controls |= (run.content.get(part) or {"controls": {}})["controls"]
    ideal = {float(name.rpartition(" ")[2]): entry for name, entry in controls.items() if name.startswith("ideal masked")}
    if ideal:
        table.add_row("ideal masked", "", *(percent(ideal[count][rate]) if count in ideal else "" for count in evaluations))
    return table


def one_evaluation(run: Run) -> str | None:
    """A valid answer that took a single network evaluation, line by line; None: there is none among the files."""
    for part, name in (("written", "written"), ("puzzles", "solved")):
        if 1 not in run.entries(part):
            continue
        film, lines = run.path.with_name(f"film-{name}-1.json"), run.path.with_name(f"{name}-1.jsonl")
        columns = read_json(film).get("columns")
        for line in lines.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            answer, solved = record["answers"][0], record["solved"][0]
            if solved:
                return "\n".join(answer[i : i + columns] for i in range(0, len(answer), columns)) if columns else answer
    return None
