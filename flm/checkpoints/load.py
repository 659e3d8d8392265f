"""From a checkpoint file back to a model. Nothing in the file is executed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm
from flm.checkpoints import restricted
from flm.checkpoints.build import build_algorithm
from flm.checkpoints.description import KEY, Description
from flm.checkpoints.fit import check_state
from flm.checkpoints.imported import ImportChoices, describe
from flm.checkpoints.published import is_published, layout_of
from flm.golf import packed as artifact

PREFIX = "algorithm."  # the name of the algorithm in the training module


class _Tokenizer(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


@dataclass
class CheckpointFile:
    """What a file holds; all tensors on the CPU.

    Attributes:
        path: the file.
        description: what it says of itself.
        state: the algorithm's state dict (the weights as trained, not averaged).
        published: whether the file is of another project's layout, so that it describes itself only in part.
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

    @cached_property
    def sha256(self) -> str:
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint(path: str | Path, choices: ImportChoices | None = None) -> CheckpointFile:
    """A checkpoint or artifact of this project, or a published one of FLM, MDLM or Duo as if it were.

    Args:
        choices: what a published file does not say; None infers all, without a tokenizer. Not read for our own files.

    Raises:
        ValueError: naming the file: it is neither, or damaged; or a choice is missing (see `describe`).
    """
    if artifact.is_artifact(path):
        return CheckpointFile(Path(path), *artifact.read(path))
    content, name = _content(path), str(path)
    if KEY in content or not is_published(content):
        try:
            description = Description.of(content, name)
        except RecursionError as error:
            raise ValueError(f"{name}: damaged description: nested without end") from error
        return CheckpointFile(Path(path), description, algorithm_state(content, name))
    choices = ImportChoices(tokenizer=False) if choices is None else choices
    base = None
    if choices.imported_base_path is not None:
        alone = replace(choices, imported_as=None, imported_base_path=None, imported_ema=None, tokenizer=False)
        found = read_checkpoint(choices.imported_base_path, alone)
        base = found.state | (found.average or {})
    return CheckpointFile(Path(path), *describe(layout_of(content, name), name, choices, base), published=True)


def load_algorithm(
    path: str | Path,
    use_average: bool | None = True,
    trusted_modules: Sequence[str] = (),
    choices: ImportChoices | None = None,
    **extra: Any,
) -> tuple[Algorithm, CheckpointFile]:
    """The model of a checkpoint, on the CPU, in evaluation mode.

    Args:
        use_average: take the averaged weights rather than those of the last step; None: where the file has them.
        trusted_modules, extra: as in `build_algorithm`.
        choices: as in `read_checkpoint`.

    Raises:
        ValueError: the file is unreadable, describes no model this code can build, or its weights do not fit it; or
            use_average is asked of a file without an average.
    """
    checkpoint = read_checkpoint(path, choices)
    try:
        algorithm = build_algorithm(checkpoint.config, checkpoint.description.vocab_size, trusted_modules, **extra)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    check_state(checkpoint.state, algorithm.state_dict(), str(path))
    algorithm.load_state_dict(checkpoint.state)
    if use_average or (use_average is None and checkpoint.average is not None):
        apply_average(algorithm, checkpoint)
    return algorithm.eval(), checkpoint


@torch.no_grad()
def apply_average(algorithm: nn.Module, checkpoint: CheckpointFile) -> None:
    """Puts the averaged weights in place of the last step's.

    Raises:
        ValueError: the file holds no average, or one of other parameters.
    """
    # by parameter and not by state dict: there a tied weight has a second name, which would bring the last step's back
    if checkpoint.average is None:
        raise ValueError(f"{checkpoint.path}: holds no average of the weights: set eval.disable_ema=true")
    trainable = {name: p for name, p in algorithm.named_parameters() if name in checkpoint.average}
    check_state(checkpoint.average, trainable, f"{checkpoint.path}, average")
    for name, parameter in trainable.items():
        parameter.copy_(checkpoint.average[name])


def _content(path: str | Path) -> Mapping[str, Any]:
    noted: list[str] = []
    content = restricted.read(path, noted)
    # a published checkpoint carries its config and tokenizer as objects; no other file has a reason to hold any
    if noted and (not is_published(content) or KEY in content):
        raise ValueError(f"{path}: refused, it holds Python objects beyond plain values and tensors ({noted[0]})")
    return content if isinstance(content, Mapping) else {}


def algorithm_state(content: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The algorithm's part of the state dict in a loaded file called `name`."""
    state = content.get("state_dict")
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise ValueError(f"{name}: damaged checkpoint: no weights under state_dict")
    return {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}


def check_vocabulary(checkpoint: CheckpointFile, tokenizer: _Tokenizer) -> None:
    """Raises ValueError unless the tokenizer is the one the checkpoint was trained with."""
    check_tokenizer(checkpoint.tokenizer, tokenizer.to_dict(), str(checkpoint.path))


def check_tokenizer(stored: Mapping[str, Any] | None, given: Mapping[str, Any] | None, name: str) -> None:
    """Raises ValueError unless two Tokenizer.to_dict() are equal; `name` is the file that holds the first."""
    stored, given = ({key: v for key, v in (side or {}).items() if key != "name"} for side in (stored, given))
    if stored != given:
        keys = sorted(set(stored) | set(given))
        differing = [key for key in keys if stored.get(key) != given.get(key)]
        raise ValueError(
            f"{name}: a checkpoint of another vocabulary: its tokenizer differs from that of the data in "
            f"{', '.join(differing) or 'being absent'}: choose the data= it was trained on"
        )
