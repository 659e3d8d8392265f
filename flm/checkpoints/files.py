"""Writing a checkpoint whole or not at all, reading one without trusting it, and checking that its weights fit a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flm import atomic
from flm.checkpoints import restricted


def save(content: Any, path: str | Path) -> None:
    """Writes with torch.save so that `path` holds either the old file or the whole new one, whenever the process dies.

    Raises:
        OSError: the disk is full or refuses; the old file is untouched and nothing is left beside it.
    """
    with atomic.draft(path, durable=True) as partial:
        try:
            with partial.open("wb") as file:
                torch.save(content, file)
        except RuntimeError as error:  # torch raises its own after a failed write; the system's error is its context
            raise error.__context__ if isinstance(error.__context__, OSError) else error  # noqa: B904


def load(path: str | Path) -> Any:
    """Plain values and CPU tensors of a torch file. Anything else in it is refused, and nothing is executed.

    Raises:
        ValueError: there is no such file, it is cut short or damaged, or it holds more than plain values and tensors.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path}: a folder: give the strategy= that wrote it, or make a file of it: flm join {path} FILE")
    noted: list[str] = []
    content = restricted.read(path, noted)
    if noted:
        raise ValueError(f"{path}: refused, it holds Python objects beyond plain values and tensors ({noted[0]})")
    return content


def check_state(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str, shown: int = 4) -> None:
    """Raises ValueError naming, key by key, the first few weights that are missing, unexpected or of another shape."""
    problems = [f"{key} missing" for key in expected if key not in given]
    problems += [f"{key} unexpected" for key in given if key not in expected]
    problems += [
        f"{key} has shape {tuple(given[key].shape)}, the model needs {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in given and given[key].shape != tensor.shape
    ]
    if problems:
        more = f"; and {len(problems) - shown} more" if len(problems) > shown else ""
        raise ValueError(f"{name}: the weights do not fit the model: {'; '.join(problems[:shown])}{more}")
