"""mode=export: writes a checkpoint as a Hugging Face folder, and uploads it if a repository is named."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from flm.checkpoints.model_file import AVERAGE, ModelSource
from flm.export.hf_folder import write_folder
from flm.export.model_card import model_card
from flm.export.upload import check_token, push_to_hub
from flm.ranges import Text
from flm.results.files import read_result
from flm.tasks.evaluation import EvalOptions, load_model
from flm.tasks.machine import Machine
from flm.tasks.run import Run


@dataclass(frozen=True)
class ExportOptions:
    """The `export` config; keys explained there."""

    license: Text | None = None
    citation: Text | None = None
    results: Sequence[Text] = ()
    repo_id: Text | None = None
    private: bool = True


def export(config: DictConfig) -> dict[str, Any]:
    """Writes eval.checkpoint_path to run_dir, with averaged weights unless eval.disable_ema; uploads it to export.repo_id."""
    run, console = Run(config), Console()
    wanted = run.options(ExportOptions, "export")
    repo_id = wanted.repo_id
    if repo_id is not None:
        check_token(repo_id)  # a missing login is an error before anything is written
    lm = load_model(run.options(EvalOptions, "eval"), Machine.of(run["trainer"], run["model"]))
    results = [_result(path, lm.source) for path in wanted.results]
    name = repo_id or run.folder.resolve().name
    card = model_card(name, lm.algorithm, lm.source, wanted.license, wanted.citation, results)
    files = write_folder(run.folder, lm.algorithm, lm.source, card)
    console.print(f"exported to {run.folder}; in Python: flm.load({str(run.folder)!r})", soft_wrap=True)
    if wanted.license is None:
        console.print("note: the model card names no licence: set export.license=apache-2.0, or another")
    address = None
    if repo_id is not None:
        address = push_to_hub(run.folder, files, repo_id, wanted.private)
        console.print(f"uploaded: {address}", soft_wrap=True)
    return {"folder": str(run.folder), "commit": address}


def _result(path: str | Path, source: ModelSource) -> dict[str, Any]:
    """A result of mode=sample_eval or ppl_eval for the card. Raises ValueError if it is not of the exported weights."""
    result = read_result(path)
    if not {"generated", "likelihood"} & set(result):
        raise ValueError(f"export.results: {path}: not a result of mode=sample_eval or mode=ppl_eval")
    if (result.get("checkpoint") or {}).get("sha256") != source.sha256:
        raise ValueError(f"export.results: {path}: measured on another checkpoint than {source.path}")
    if result["config"]["eval"]["disable_ema"] == (source.weights == AVERAGE):
        raise ValueError(f"export.results: {path}: measured with another eval.disable_ema than is exported")
    return result
