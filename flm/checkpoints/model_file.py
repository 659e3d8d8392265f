"""A model file of any kind, read: its description and weights; and the part of it that is kept beside a loaded model."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from flm.algos.algorithm import Algorithm
from flm.checkpoints.build import build_algorithm
from flm.checkpoints.description import Description
from flm.checkpoints.room import Room
from flm.samplers.canvas import CANVAS_KEYS

AVERAGE, LAST_STEP = "average", "last step"
_DEFAULT_STEPS = 64


@dataclass
class ModelFile:
    """The content of a model file. All tensors are on the CPU.

    Attributes:
        path: the file, or the folder if the model is several files.
        description: what it says of itself.
        state: the algorithm's state dict; the weights of the last step if `description.average` holds the averaged ones.
        published: whether it has the layout of another project and so describes itself only in part.
    """

    path: Path
    description: Description
    state: dict[str, Tensor]
    published: bool = False

    @property
    def config(self) -> dict[str, Any]:
        return self.description.config

    @property
    def tokenizer(self) -> dict[str, Any] | None:
        return self.description.tokenizer

    @property
    def average(self) -> dict[str, Tensor] | None:
        return self.description.average

    @property
    def step(self) -> int:
        return self.description.step

    @property
    def only_weights(self) -> str | None:
        """AVERAGE or LAST_STEP if the file says that it holds one of them only; None: it may hold both."""
        said = self.config.get("weights")
        return said if said in (AVERAGE, LAST_STEP) else None

    @property
    def generation(self) -> dict[str, Any]:
        """`steps` and sampler `options` to generate with."""
        return generation_defaults(self.config)

    @property
    def content(self) -> Path:
        """The file whose hash stands for the model."""
        return self.path

    @cached_property
    def sha256(self) -> str:
        return sha256_of(self.content)

    def record(self) -> dict[str, Any]:
        """For result files: which model it is, and what it was trained with."""
        return {"path": str(self.path), "sha256": self.sha256, "step": self.step, "config": self.config}

    def source(self, label: str, weights: str) -> "ModelSource":
        """All but the weights, to keep beside a loaded model."""
        return ModelSource(self.path, label, self.step, self.config, self.tokenizer, self.generation, weights, self.content)

    def algorithm(self, trusted_modules: Sequence[str], **extra: Any) -> Algorithm:
        """The described model with initial weights; arguments and errors as of `build_algorithm`."""
        try:
            room = Room.of(self.state)
            return build_algorithm(self.config, self.description.vocab_size, trusted_modules, room=room, **extra)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error

    def state_for(self, algorithm: Algorithm) -> Mapping[str, Tensor]:
        """`state` under the names of the algorithm's own parameters."""
        return self.state


@dataclass(frozen=True)
class ModelSource:
    """Where a loaded model comes from: its file's description without the weights.

    Attributes:
        path: the checkpoint, artifact or exported folder.
        label: name in tables and figures: the folder of the run that trained it, or the name of the file.
        step: optimiser steps taken.
        config: the resolved config of the training run, plain values.
        tokenizer: Tokenizer.to_dict(); None for a published file where none was wanted.
        generation: `steps` and sampler `options` to generate with.
        weights: which were taken, AVERAGE or LAST_STEP.
        content: the file whose hash stands for the model.
    """

    path: Path
    label: str
    step: int
    config: dict[str, Any]
    tokenizer: dict[str, Any] | None
    generation: dict[str, Any]
    weights: str
    content: Path

    @cached_property
    def sha256(self) -> str:
        return sha256_of(self.content)

    def record(self) -> dict[str, Any]:
        """For result files: which model it is, and what it was trained with."""
        return {"path": str(self.path), "sha256": self.sha256, "step": self.step, "config": self.config}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file; of a folder, that of a list of its files' names and digests."""
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.is_file())
        return hashlib.sha256("".join(f"{file.name} {sha256_of(file)}\n" for file in inside).encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def generation_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """`steps` and sampler `options` to generate with, from the `sampling` group of a recorded config.

    If it lists several numbers of steps, the largest is taken.
    """
    recorded = config.get("sampling") or {}
    steps = recorded.get("steps") or _DEFAULT_STEPS
    options = {key: value for key, value in recorded.items() if key not in CANVAS_KEYS and value is not None}
    return {"steps": max(steps) if isinstance(steps, list | tuple) else steps, "options": options}
