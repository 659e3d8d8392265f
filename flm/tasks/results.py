"""Result files: JSON with everything needed to say where a number came from."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from flm.atomic import write_text
from flm.checkpoints.description import package_version
from flm.checkpoints.model_file import ModelFile, ModelSource
from flm.results.files import FORMAT_VERSION
from flm.tasks.assemble import plain_config


def provenance(config: DictConfig, checkpoint: ModelFile | ModelSource | None = None) -> dict[str, Any]:
    """Command, config, code, machine and, where there is one, the checkpoint that a result came from."""
    return {
        "format_version": FORMAT_VERSION,
        "command": sys.argv,
        "config": plain_config(config),
        "git_revision": _git_revision(),
        "versions": {"flm": package_version(), "torch": torch.__version__, "python": sys.version.split()[0]},
        "checkpoint": None if checkpoint is None else checkpoint.record(),
        "seed": config.seed,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _git_revision() -> str | None:
    """The commit this code stands on, with a mark if files differ from it; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).resolve().parents[2]), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
