"""A checkpoint as a folder: what is split over processes, each part in the file of the process that had it, and all the rest.

    rest.ckpt                    a checkpoint file in which a mark with a name stands where a split tensor was
    shard-00001-model-....safetensors   parts by name, and where in its tensor each begins; one file a process

Reading executes nothing: safetensors hold no objects, and `flm.checkpoints.files` refuses them in the rest.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.tensor import DTensor

from flm.checkpoints import files
from flm.checkpoints.description import KEY, Description
from flm.checkpoints.load import algorithm_state

REST = "rest.ckpt"
_MARK = "split tensor"


class Mark(NamedTuple):
    """What stands in the rest for a split tensor: its name, and its shape when whole."""

    name: str
    shape: list[int]

    @classmethod
    def of(cls, said: Any) -> "Mark":
        """What a file says; a mark of no name, of which no parts can be there, where it is none."""
        return cls(*said) if isinstance(said, list) and len(said) == 2 and isinstance(said[0], str) else cls("", [])


def separated(content: Any, split: dict[str, DTensor], name: str = "") -> Any:
    """A checkpoint's dicts and lists with marks for split tensors, which go into `split` by the names on the marks."""
    if isinstance(content, DTensor):
        split[name] = content
        return {_MARK: [name, list(content.shape)]}
    if isinstance(content, Mapping):
        return {key: separated(value, split, f"{name}/{key}") for key, value in content.items()}
    if isinstance(content, list):
        return [separated(value, split, f"{name}/{index}") for index, value in enumerate(content)]
    return content


def joined(rest: Any, tensor: Callable[[Mark], Tensor]) -> Any:
    """The reverse."""
    if isinstance(rest, Mapping):
        if set(rest) == {_MARK}:
            return tensor(Mark.of(rest[_MARK]))
        return {key: joined(value, tensor) for key, value in rest.items()}
    return [joined(value, tensor) for value in rest] if isinstance(rest, list) else rest


class Parts:
    """The split tensors of a folder, whole, each read when it is asked for.

    Raises:
        ValueError: naming the folder: a file is damaged, or a part is missing.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        try:
            found = HuggingFaceStorageReader(str(folder)).read_metadata()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
            raise self._damaged(str(error) or type(error).__name__) from error
        self._known = found.state_dict_metadata
        self._places: dict[str, list[tuple[str, torch.Size, torch.Size]]] = {}
        for index, info in found.storage_data.items():
            self._places.setdefault(index.fqn, []).append((info.relative_path, index.offset, info.shape))

    def dtype(self, mark: Mark) -> torch.dtype:
        """Of a tensor all of whose parts are there."""
        known, parts = self._known.get(mark.name), self._places.get(mark.name, ())
        if known is None or list(known.size) != mark.shape or not _follow([(o, s) for _, o, s in parts], mark.shape):
            raise self._damaged(f"parts of {mark.name.removeprefix('/')} are missing")
        return known.properties.dtype

    def __call__(self, mark: Mark) -> Tensor:
        whole = torch.empty(mark.shape, dtype=self.dtype(mark))
        for file, offset, shape in self._places[mark.name]:
            try:
                with safetensors.safe_open(file, framework="pt") as opened:
                    part = opened.get_tensor(mark.name)
            except (OSError, safetensors.SafetensorError) as error:
                raise self._damaged(str(error)) from error
            whole[tuple(slice(begin, begin + size) for begin, size in zip(offset, shape, strict=True))] = part
        return whole

    def _damaged(self, why: str) -> ValueError:
        return ValueError(f"{self._folder}: not a whole checkpoint: {why}")


def _follow(parts: list[tuple[torch.Size, torch.Size]], whole: list[int]) -> bool:
    """Whether parts, by where they begin and their shapes, make up the whole one after the other along its first axis."""
    begins, rest = 0, whole[1:]
    for offset, shape in sorted((list(o), list(s)) for o, s in parts if s.numel()):
        if offset != [begins, *[0] * len(rest)][: len(whole)] or shape[1:] != rest:
            return False
        begins += shape[0] if shape else 1
    return begins == (whole[0] if whole else 1) or math.prod(whole) == 0


class SplitFolder:
    """Such folders among the kinds of model file."""

    @staticmethod
    def matches(path: Path) -> bool:
        return (path / REST).is_file()

    @staticmethod
    def read(path: str | Path) -> tuple[Description, dict[str, Tensor]]:
        """Description and state of the algorithm; the optimiser's state is not read.

        Raises:
            ValueError: naming the folder, which is damaged or of a part of a run's processes.
        """
        name, rest = str(path), files.load(Path(path) / REST)
        wanted = {key: value for key, value in _mapping(rest).items() if key in (KEY, "state_dict")}
        content = joined(wanted, Parts(Path(path)))
        return Description.of(content, name), algorithm_state(content, name)

    @staticmethod
    def describe(path: str | Path) -> Description:
        """Without the average."""
        rest = _mapping(files.load(Path(path) / REST))
        own = rest.get(KEY)
        return Description.of({KEY: {**own, "average": None}} if isinstance(own, Mapping) else rest, str(path))


def whole_content(path: Path) -> dict[str, Any]:
    """All that the same checkpoint in one file would hold; errors as of `SplitFolder.read`."""
    return joined(files.load(path / REST), Parts(path))


def _mapping(rest: Any) -> Mapping[str, Any]:
    return rest if isinstance(rest, Mapping) else {}
