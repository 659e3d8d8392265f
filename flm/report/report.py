"""mode=report: makes one self-contained page of result files, and its figures as PNG files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig
from rich.console import Console

from flm.atomic import write_bytes, write_text
from flm.ranges import Count, Existing, Text
from flm.report.build import Report, make_report
from flm.report.files import read_results
from flm.report.sections.quality import Shown
from flm.report.tables import markdown, plain_columns
from flm.tasks.run import Run


@dataclass(frozen=True)
class ReportOptions:
    """The `report` config; keys explained there."""

    inputs: Existing | Sequence[Existing] | None = None
    title: Text = "Flow-matching language models"
    samples: Count = 3
    characters: Count = 600
    film_tokens: Count = 160
    wandb: bool | None = None


def report(config: DictConfig) -> dict[str, Any]:
    """Writes run_dir/report.html, and its figures/*.png and tables.md, from the results under report.inputs."""
    wanted = config.report
    limits = {key: wanted[key] for key in ("samples", "characters", "film_tokens")}
    results = read_results(_inputs(wanted.inputs))
    run = Run(config)
    origin, folder = run.provenance(), run.folder
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    made_by = f"Made by {' '.join(origin['command'])}; code {origin['git_revision']}; {versions}."
    made = make_report(results, str(wanted.title), Shown(**limits), made_by)

    files = {name: folder / "figures" / f"{name}.png" for name in made.figures}
    for name, path in files.items():
        write_bytes(path, made.figures[name])
    write_text(folder / "tables.md", "\n".join(map(markdown, made.tables)))
    write_text(folder / "report.html", made.html)
    to_wandb = wanted.wandb if wanted.wandb is not None else _logs_to_wandb(config)
    if to_wandb:
        log_to_wandb(made, files, config.wandb.project, config.wandb.name, folder)
    Console().print(f"report: {folder / 'report.html'}", soft_wrap=True)
    return {"report": str(folder / "report.html"), "figures": {name: str(path) for name, path in files.items()}}


def log_to_wandb(made: Report, files: dict[str, Path], project: str, name: str | None, folder: Path) -> None:
    """The same figures and tables as one W&B run of type report. WANDB_MODE=offline keeps it under `folder`.

    Args:
        files: of the figures, by name.

    Raises:
        ValueError: wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ValueError("logger=wandb (or report.wandb=true) needs wandb: pip install wandb") from error

    run = wandb.init(project=project, name=name, job_type="report", dir=str(folder))
    try:
        content: dict[str, Any] = {f"figures/{key}": wandb.Image(str(path)) for key, path in files.items()}
        for table in made.tables:
            columns, rows = plain_columns(table)
            content[f"tables/{table.name}"] = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
        content["report"] = wandb.Html(made.html, inject=False)
        run.log(content)
    finally:
        run.finish()


def _inputs(inputs: Any) -> Sequence[str]:
    if inputs is None or (isinstance(inputs, ListConfig) and not inputs):
        raise ValueError("report.inputs is not set: name folders or files of results, report.inputs=[DIR,...]")
    return [str(path) for path in inputs] if isinstance(inputs, ListConfig) else [str(inputs)]


def _logs_to_wandb(config: DictConfig) -> bool:
    return config.logger is not None and config.logger._target_.endswith(".WandbLogger")
