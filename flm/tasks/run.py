"""One run of a mode: its plain config, its folder, and the provenance of its result files."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf

from flm.annotations import shown
from flm.atomic import write_json
from flm.checkpoints.description import package_version
from flm.checkpoints.model_file import ModelFile, ModelSource
from flm.language_model import LanguageModel
from flm.results.files import FORMAT_VERSION
from flm.schema import made

Options = TypeVar("Options")


class Run:
    """The config and folder of one run.

    Attributes:
        folder: for all files of the run; created with the first.
        config: resolved, in plain types, with every value that the run uses.
    """

    def __init__(self, config: DictConfig | dict[str, Any]):
        self.config = plain_config(config) if OmegaConf.is_config(config) else config
        self.folder = Path(self.config["run_dir"])

    def __getitem__(self, group: str) -> Any:
        """A group of the config, or a value of its top level."""
        return self.config[group]

    def options(self, kind: type[Options], group: str) -> Options:
        """A group of the config as an instance of the class whose arguments it holds."""
        if not isinstance(self.config[group], Mapping):
            raise ValueError(f"{group} must be a mapping of its keys, not {shown(self.config[group])}")
        values = {key: value for key, value in self.config[group].items() if key != "_target_"}
        return made(kind, values, group)

    def changed(self, group: str, **values: Any) -> "Run":
        """The same run with other values in a group of its config."""
        return Run(self.config | {group: self.config[group] | values})

    def provenance(self, source: ModelFile | ModelSource | None = None) -> dict[str, Any]:
        """The head of every result file: command, config, code versions, seed, and the model, if there is one."""
        return {
            "format_version": FORMAT_VERSION,
            "command": sys.argv,
            "config": self.config,
            "git_revision": _git_revision(),
            "versions": {"flm": package_version(), "torch": torch.__version__, "python": sys.version.split()[0]},
            "checkpoint": None if source is None else source.record(),
            "seed": self.config["seed"],
        }

    def about(
        self, kind: str, lm: LanguageModel, scorer: dict[str, Any] | None = None, autocast: bool = True
    ) -> dict[str, Any]:
        """The head of a result file on one model from `flm.load`. `autocast`: whether networks ran within `lm.autocast()`."""
        assert lm.source is not None
        return self.provenance(lm.source) | {
            "kind": kind,
            "label": self.config["eval"]["label"] or lm.source.label,
            "algorithm": type(lm.algorithm).__name__,
            "dtype": _computed_in(lm, autocast),
            "weights": lm.source.weights,
            "processes": int(os.environ.get("WORLD_SIZE", 1)),
            "device": lm.device.type,
            "scorer": scorer,
        }

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        """Writes a file of the run, whole or not at all; returns its path."""
        return write_json(self.folder / name, content)


def plain_config(config: DictConfig) -> dict[str, Any]:
    """The config resolved, in plain types."""
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    return resolved


def _computed_in(lm: LanguageModel, autocast: bool) -> str:
    """The dtype that networks computed in: autocast's if it was on, else that of their weights."""
    dtype, device = next(lm.algorithm.parameters()).dtype, lm.device.type
    with lm.autocast():
        if autocast and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
    return str(dtype).removeprefix("torch.")


def _git_revision() -> str | None:
    """The commit of this code, with "-dirty" if files differ from it; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).resolve().parents[2]), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
