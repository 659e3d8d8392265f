"""Writing a checkpoint whole or not at all, and reading one without trusting it."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from flm.checkpoints import restricted


def save(content: Any, path: str | Path) -> None:
    """Writes with torch.save so that `path` holds either the old file or the whole new one, whenever the process dies.

    Raises:
        OSError: the disk is full or refuses; the old file is untouched and nothing is left beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # in the same folder, since a rename is atomic only within a file system; the same name each time, so that a killed
    # process leaves at most one behind and the next write reuses it
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        reason = _cause(error)
        raise OSError(f"{path}: could not write the checkpoint ({reason}); an earlier file there is intact") from error
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def alias(path: Path, name: Path) -> None:
    """Makes `name` the same file as `path`, atomically; a copy where the file system has no hard links."""
    partial = name.with_name(f".{name.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(path, partial)
    except OSError:
        shutil.copyfile(path, partial)
    os.replace(partial, name)
    partial.unlink(missing_ok=True)  # renaming a link onto another link to the same file leaves both
    sync_folder(name.parent)


def load(path: str | Path) -> Any:
    """Plain values and CPU tensors of a torch file. Executes nothing in it: anything else is refused.

    Raises:
        ValueError: there is no such file, it is cut short or damaged, or it holds more than plain values and tensors.
    """
    noted: list[str] = []
    content = restricted.read(path, noted)
    if noted:
        raise ValueError(f"{path}: refused, it holds Python objects beyond plain values and tensors ({noted[0]})")
    return content


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cause(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (named or lines or [type(error).__name__])[0]
