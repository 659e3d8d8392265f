"""The device and precision that networks compute in, by Lightning's names, and elementwise functions compiled there."""

import functools
import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

SHORT = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed", "64": "64-true"}  # Lightning takes these names too
OF_WEIGHTS = {torch.float32: "32-true", torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}  # for weights of each dtype
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def device_named(device: torch.device | str | None, key: str = "device") -> torch.device:
    """The device of that name; None: CUDA if there is one, else the CPU.

    Args:
        key: the config key or argument that names it, for errors.

    Raises:
        ValueError: this machine has no such device.
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


def dtype_named(dtype: torch.dtype | str) -> torch.dtype:
    """A dtype of OF_WEIGHTS, given itself or its name.

    Raises:
        ValueError: it is none of them.
    """
    names = {str(known).removeprefix("torch."): known for known in OF_WEIGHTS}
    found = names.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ValueError(f"dtype must be {', '.join(names)} or null, not {dtype}")
    return found


def precision_on(device: torch.device, precision: str | None) -> str:
    """The precision asked for; None is bf16-mixed on CUDA, and 32-true elsewhere, where bf16 is slower."""
    if precision is not None:
        return SHORT.get(precision, precision)
    return "bf16-mixed" if device.type == "cuda" else "32-true"


def autocast(device: torch.device, precision: str | None = None) -> AbstractContextManager[Any]:
    """The autocast context of a precision for sampling and scoring; no context for 32-true.

    Raises:
        ValueError: it is not 32-true, bf16-mixed or 16-mixed.
    """
    name = precision_on(device, precision)
    if name != "32-true" and name not in AUTOCAST:
        raise ValueError(f"precision must be 32-true, {' or '.join(AUTOCAST)} where nothing is trained, not {name}")
    dtype = AUTOCAST.get(name)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


# Chains of elementwise operations on (n, V) logits are bound by memory traffic: compiled they are read and written once.
COMPILED_ON = {"cuda"}


def missing_compiler(device_type: str) -> str | None:
    """Why nothing can be compiled for such a device on this machine, in a few words; None if it can."""
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    variable, names = ("CXX", ("g++", "clang++")) if device_type == "cpu" else ("CC", ("gcc", "cc", "clang"))
    given = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([given] if given else names)):
        return f"there is no compiler: install {names[0]} or name one in {variable}"
    return None


def compiled_on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, compiled for calls whose first argument is on a device of COMPILED_ON, and unchanged elsewhere.

    If nothing can be compiled on this machine, it stays uncompiled and warns once.
    """
    compiled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(tensor: Tensor, *rest: Any) -> Any:
        nonlocal compiled
        kind = tensor.device.type
        if kind not in COMPILED_ON:
            return function(tensor, *rest)
        if compiled is None:
            reason = missing_compiler(kind)
            if reason is not None:
                warnings.warn(f"{function.__name__} runs uncompiled, slower: {reason}", stacklevel=2)
            compiled = torch.compile(function) if reason is None else function
        return compiled(tensor, *rest)

    return call
