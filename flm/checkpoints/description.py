"""The description in a checkpoint: enough to rebuild the model and its tokenizer from the file alone.

It lies under the key `flm` of the file, in plain types and tensors only, beside what Lightning keeps there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from flm import __version__

KEY = "flm"
FORMAT_VERSION = 1


def package_version() -> str:
    return __version__


@dataclass
class Description:
    """A model without its last weights.

    Attributes:
        config: the resolved config, plain values; `algo` and `model` hold the nodes the model is built from.
        tokenizer: Tokenizer.to_dict(), or None for data without one.
        vocab_size: V.
        length: L, positions of a training sequence.
        step: optimiser steps taken.
        average: averaged weights by parameter name; None if no average was kept.
        average_updates: optimiser steps that the average has seen.
        format_version: of this description.
        package_version: of the code that wrote it.

    Raises:
        ValueError: config or tokenizer hold values that are not plain, see `check_plain`.
    """

    config: dict[str, Any]
    tokenizer: dict[str, Any] | None
    vocab_size: int
    length: int
    step: int
    average: dict[str, Tensor] | None = None
    average_updates: int = 0
    format_version: int = FORMAT_VERSION
    package_version: str = field(default_factory=package_version)

    def __post_init__(self) -> None:
        check_plain(self.config, "config")
        check_plain(self.tokenizer, "tokenizer")

    def to_dict(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def of(cls, checkpoint: Any, name: str) -> "Description":
        """The description in a loaded file called `name`.

        Raises:
            ValueError: there is none, or it is of a format this code does not know.
        """
        found = checkpoint.get(KEY) if isinstance(checkpoint, Mapping) else None
        if not isinstance(found, Mapping):
            raise ValueError(f"{name}: not a checkpoint of this project: no description of a model under {KEY!r}")
        version = found.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{name}: checkpoint format {version!r}, written by version {found.get('package_version')!r}; "
                f"this code reads format {FORMAT_VERSION}: use the version that wrote it"
            )
        names = {item.name for item in fields(cls)}
        if set(found) != names:
            raise ValueError(f"{name}: damaged description: {sorted(names ^ set(found))} missing or unknown")
        description = cls(**found)
        types = {"config": dict, "vocab_size": int, "length": int, "step": int, "average_updates": int}
        for key, kind in types.items():
            if not isinstance(getattr(description, key), kind):
                raise ValueError(f"{name}: damaged description: {key} is not of type {kind.__name__}")
        return description


def check_plain(value: Any, where: str) -> None:
    """Raises ValueError, naming the key, for anything but None, bool, int, float, str, and lists, tuples and dicts of them."""
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) not in (str, int):
                raise ValueError(f"{where}: key {key!r} is a {type(key).__name__}: a checkpoint takes str and int")
            check_plain(item, f"{where}.{key}")
    elif type(value) is list or type(value) is tuple:
        for index, item in enumerate(value):
            check_plain(item, f"{where}[{index}]")
    elif type(value) not in (type(None), bool, int, float, str):
        raise ValueError(f"{where}: a {type(value).__name__} cannot go into a checkpoint: give plain values")
