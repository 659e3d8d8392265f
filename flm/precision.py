"""What networks compute in, by the names that Lightning has for it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def precision_on(device: torch.device, precision: str | None) -> str:
    """The precision asked for; None is bf16-mixed on CUDA, and 32-true elsewhere, where bf16 is slower."""
    if precision is not None:
        return precision
    return "bf16-mixed" if device.type == "cuda" else "32-true"


def autocast(device: torch.device, precision: str | None = None) -> AbstractContextManager[Any]:
    """Where nobody trains: autocast as the precision asks, or nothing."""
    dtype = AUTOCAST.get(precision_on(device, precision))
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
