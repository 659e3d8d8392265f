"""mode=side_by_side: several results of mode=solve_eval in small tables, and an answer written in one evaluation.

Training seconds are the processor time of the runs that made the checkpoints, including a teacher's, if their folders are still
there. Results with the same label are seeds of one model and share a row: the mean over seeds with its standard error.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from omegaconf import DictConfig
from rich.panel import Panel
from rich.table import Table

from flm.handed_in import parsed, read_text
from flm.measures.estimate import Estimate
from flm.puzzles.solve_tables import percent
from flm.ranges import Existing
from flm.results.files import read_json, read_result
from flm.tasks.processes import terminal
from flm.training.status import cpu_seconds


@dataclass(frozen=True)
class Run:
    """A result file, and the cost of the model's training.

    Attributes:
        seconds: processor time of training, including a teacher's; None: the folders of the runs are missing.
    """

    path: Path
    label: str
    content: Mapping[str, Any]
    seconds: float | None

    def entries(self, part: str) -> dict[float, Mapping[str, Any]]:
        """The entries of a part of the result by number of network evaluations; {} if the part was not measured."""
        return {entry["evaluations"]: entry for entry in (self.content.get(part) or {"by_steps": {}})["by_steps"].values()}


@dataclass(frozen=True)
class SideBySideOptions:
    """The group `side_by_side`, whose YAML explains the keys."""

    runs: Annotated[Sequence[Existing], MinLen(1)]


def side_by_side(config: DictConfig) -> list[dict[str, Any]]:
    """Prints the table of side_by_side.runs: folders with a solve_eval.json, or such files. Returns their contents."""
    wanted = config.side_by_side.runs
    if isinstance(wanted, str) or not wanted:
        raise ValueError(f"side_by_side.runs must be a list of folders with solve_eval.json, not {wanted}")
    runs = [read(Path(path)) for path in wanted]
    console = terminal()
    for part, title, show in TABLES:
        if any(run.entries(part) for run in runs):
            console.print(table_of(runs, part, title, show))
    for run in runs:
        found = one_evaluation(run)
        if found is not None:
            console.print(Panel.fit(found, title=f"{run.label}, one evaluation"))
            break
    return [dict(run.content) for run in runs]


def read(path: Path) -> Run:
    """Reads the result in a folder or file. Raises ValueError if there is none."""
    path = path / "solve_eval.json" if path.is_dir() else path
    content = read_result(path, "solve_eval")
    checkpoint = Path((content.get("checkpoint") or {}).get("path", ""))
    return Run(path, content["label"], content, training_seconds(checkpoint.parent.parent))


def training_seconds(run: Path) -> float | None:
    """Processor time of a run and its teacher's; None if files are missing or have no record of it."""
    seconds, about = cpu_seconds(run), run / "run.json"
    if seconds is None or not about.is_file():
        return None
    teacher = ((read_json(about).get("config") or {}).get("algo") or {}).get("teacher_path")
    if not teacher:
        return seconds
    earlier = training_seconds(Path(teacher) if Path(teacher).is_dir() else Path(teacher).parent.parent)
    return None if earlier is None else seconds + earlier


def table_of(runs: Sequence[Run], part: str, title: str, show: Callable[[list[Mapping[str, Any]]], str]) -> Table:
    """A row for each model, with the cost of its training, and a column for each number of evaluations.

    Args:
        show: gives the text of a cell from the entries of a model's seeds.
    """
    models: dict[str, list[Run]] = {}
    for run in runs:
        if run.entries(part):
            models.setdefault(run.label, []).append(run)
    evaluations = sorted({count for run in runs for count in run.entries(part)})
    table = Table(title=title)
    for heading in ("evaluations", *(f"{count:g}" for count in evaluations)):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, group in models.items():
        known = [run.seconds for run in group if run.seconds is not None]
        found = [
            [entries[count] for entries in (run.entries(part) for run in group) if count in entries] for count in evaluations
        ]
        about = [f"{len(group)} seeds"] if len(group) > 1 else []
        about += [f"{sum(known) / len(known):.0f} CPU s"] if known else []
        table.add_row(", ".join([label, *about]), *(show(entries) if entries else "" for entries in found))
    controls: dict[str, dict[str, Any]] = {}
    for run in runs:
        controls |= (run.content.get(part) or {"controls": {}})["controls"]
    ideal = {float(name.rpartition(" ")[2]): entry for name, entry in controls.items() if name.startswith("ideal masked")}
    cells = [show([ideal[count]]) if count in ideal else "" for count in evaluations]
    if any(cells):
        table.add_row("ideal masked", *cells)
    return table


def share(key: str) -> Callable[[list[Mapping[str, Any]]], str]:
    """Shows a share in per cent, with its standard error over answers, or over seeds if there are several."""

    def show(entries: list[Mapping[str, Any]]) -> str:
        return percent(entries[0][key] if len(entries) == 1 else asdict(Estimate.of([entry[key]["mean"] for entry in entries])))

    return show


def mean_of(key: str, digits: int) -> Callable[[list[Mapping[str, Any]]], str]:
    """Shows the mean of a number over seeds."""

    def show(entries: list[Mapping[str, Any]]) -> str:
        values = [entry[key] for entry in entries if entry.get(key) is not None]
        return f"{sum(values) / len(values):.{digits}f}" if values else ""

    return show


def one_evaluation(run: Run) -> str | None:
    """A valid answer that took a single network evaluation, as a board; None: there is none in the files."""
    for part, name in (("written", "written"), ("puzzles", "solved")):
        if 1 not in run.entries(part):
            continue
        film, lines = run.path.with_name(f"film-{name}-1.json"), run.path.with_name(f"{name}-1.jsonl")
        columns = read_json(film).get("columns")
        for line in read_text(lines, 1 << 30).splitlines():
            record = parsed(line)
            answer, solved = record["answers"][0], record["solved"][0]
            if solved:
                return "\n".join(answer[i : i + columns] for i in range(0, len(answer), columns)) if columns else answer
    return None


# For each table: the part of the result, the title, and how a cell is shown.
TABLES = (
    ("written", "written from nothing: % valid", share("valid")),
    ("written", "different valid ones", mean_of("distinct", 0)),
    ("written", "entropy of the valid ones, nats", mean_of("entropy_nats", 2)),
    ("written", "milliseconds an answer", mean_of("ms_per_answer", 2)),
    ("puzzles", "held-out puzzles: % solved", share("solved")),
    ("puzzles", "milliseconds a puzzle", mean_of("ms_per_puzzle", 2)),
)
