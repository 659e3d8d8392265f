"""The device and precision of a run, and whether its networks are compiled."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flm.algos.algorithm import Algorithm
from flm.device import device_named, missing_compiler, precision_on

log = logging.getLogger(__name__)

# Modes of torch.compile without CUDA graphs: all blocks share one compilation, and the next call of a graph would overwrite the
# output of a block before the backward pass reads it.
MODES = ("default", "max-autotune-no-cudagraphs")
# The mode for each value of DIT_USE_COMPILE, as in the published runs.
SWITCH = {"TRUE": MODES[1], "1": MODES[1], "FALSE": None, "0": None}


@dataclass(frozen=True)
class Compilation:
    """How networks are compiled.

    Attributes:
        mode: of torch.compile; None: networks are not compiled.
        is_demanded: whether the config asks for it, so that a network that cannot be compiled is an error.
    """

    mode: str | None = None
    is_demanded: bool = True


@dataclass(frozen=True)
class Machine:
    """What a run computes on.

    Attributes:
        device: CUDA if there is one, unless the CPU is asked for.
        precision: by Lightning's names.
        compilation: of its networks.
    """

    device: torch.device
    precision: str
    compilation: Compilation = Compilation()

    @classmethod
    def of(cls, trainer: Mapping[str, Any], model: Mapping[str, Any]) -> "Machine":
        """From the groups `trainer` and `model` of a config."""
        device = device_of(trainer["accelerator"])
        return cls(device, precision_of(trainer["precision"], device), compilation(model.get("compile"), device))


def device_of(accelerator: str) -> torch.device:
    """The device of trainer.accelerator; "auto": CUDA if there is one. ValueError: a GPU is asked for and there is none."""
    return device_named(None if accelerator == "auto" else accelerator, "trainer.accelerator")


def precision_of(precision: Any, device: torch.device) -> str:
    """The precision of trainer.precision; null: bf16-mixed on CUDA, and 32-true elsewhere, where bf16 is slower."""
    return precision_on(device, None if precision is None else str(precision))


def compilation(wanted: Any, device: torch.device) -> "Compilation":
    """How model.compile asks for compilation: true (the default mode), false, or a mode.

    With null, or without the key, the environment variable DIT_USE_COMPILE (TRUE or FALSE) decides. If that is not set,
    networks are compiled only on CUDA: on a CPU compilation takes longer than it saves in a run of minutes.
    """
    if wanted is None:
        switch = os.environ.get("DIT_USE_COMPILE", "")
        if not switch:
            return Compilation("default" if device.type == "cuda" else None, is_demanded=False)
        if switch.upper() not in SWITCH:
            raise ValueError(f"DIT_USE_COMPILE={switch} must be TRUE or FALSE")
        return Compilation(SWITCH[switch.upper()], is_demanded=False)
    if isinstance(wanted, bool):
        return Compilation("default" if wanted else None)
    if wanted not in MODES:
        raise ValueError(f"model.compile={wanted} must be true, false, null or one of {', '.join(MODES)}")
    return Compilation(wanted)


def compile_networks(algorithm: Algorithm, wanted: Compilation, device: torch.device) -> None:
    """Compiles the blocks of all networks of an algorithm and its teachers.

    Args:
        device: that they will run on.

    Raises:
        ValueError: compilation is demanded, but impossible on this machine, or no network has blocks to compile.
    """
    if wanted.mode is None:
        return
    networks = [module for module in algorithm.every_module() if hasattr(module, "compile_blocks")]
    reason = missing_compiler(device.type)
    if reason is None and not networks:
        reason = f"the network of {type(algorithm).__name__} has no compile_blocks"
    if reason is not None and wanted.is_demanded:
        raise ValueError(f"model.compile: {reason}; or set model.compile=false")
    if reason is not None:
        log.warning("networks run uncompiled, slower: %s", reason)
        return
    for network in networks:
        network.compile_blocks(wanted.mode)
