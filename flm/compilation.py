"""What torch.compile needs, and functions that are compiled where it pays."""

import functools
import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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
    """`function`, compiled at its first call whose first argument lies on a device of COMPILED_ON; as it is elsewhere.

    Where nothing can be compiled it stays as it is, which is said once.
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
