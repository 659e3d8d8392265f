"""Where and in what networks compute, the latter by the names that Lightning has for it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

SHORT = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed", "64": "64-true"}  # Lightning takes these names too
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def device_named(device: torch.device | str | None, key: str = "device") -> torch.device:
    """The device; None is CUDA where it is, else the CPU.

    Raises:
        ValueError: there is no such device on this machine. `key` is what asked for it.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device("cuda" if device == "gpu" else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{key} must be cpu, cuda or cuda:NUMBER, not {device!r}") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{key}={device}: PyTorch finds no such CUDA device here; take cpu")
    return found


def precision_on(device: torch.device, precision: str | None) -> str:
    """The precision asked for; None is bf16-mixed on CUDA, and 32-true elsewhere, where bf16 is slower."""
    if precision is not None:
        return SHORT.get(precision, precision)
    return "bf16-mixed" if device.type == "cuda" else "32-true"


def autocast(device: torch.device, precision: str | None = None) -> AbstractContextManager[Any]:
    """Where nobody trains: autocast as the precision asks, or nothing.

    Raises:
        ValueError: it is not one of those that networks sample and score in.
    """
    name = precision_on(device, precision)
    if name != "32-true" and name not in AUTOCAST:
        raise ValueError(f"precision must be 32-true, {' or '.join(AUTOCAST)} where nothing is trained, not {name}")
    dtype = AUTOCAST.get(name)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
