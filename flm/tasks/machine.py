"""What a run computes on and in: device, precision, and whether its networks are compiled."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flm.algos.algorithm import Algorithm
from flm.compilation import missing_compiler
from flm.precision import device_named, precision_on

# torch.compile's, without those that use CUDA graphs: a graph's output is overwritten by the next call, and all blocks share
# one compilation, so a block's output would be gone before the backward pass reads it.
MODES = ("default", "max-autotune-no-cudagraphs")
SWITCH = {"TRUE": "default", "1": "default", "FALSE": None, "0": None, "": None}


@dataclass(frozen=True)
class Machine:
    """
    Attributes:
        device: CUDA where it is, unless the CPU is asked for.
        precision: as Lightning names them.
        compile_mode: of torch.compile; None: networks are not compiled.
    """

    device: torch.device
    precision: str
    compile_mode: str | None = None

    @classmethod
    def of(cls, trainer: Mapping[str, Any], model: Mapping[str, Any]) -> "Machine":
        """As these groups of the config say."""
        device = device_of(trainer["accelerator"])
        return cls(device, precision_of(trainer["precision"], device), compile_mode(model.get("compile")))


def device_of(accelerator: str) -> torch.device:
    """What trainer.accelerator means: CUDA where it is, unless the CPU is asked for.

    Raises:
        ValueError: it asks for a GPU and there is none.
    """
    return device_named(None if accelerator == "auto" else accelerator, "trainer.accelerator")


def precision_of(precision: Any, device: torch.device) -> str:
    """What trainer.precision means; null is bf16-mixed on CUDA, and 32-true elsewhere, where bf16 is slower."""
    return precision_on(device, None if precision is None else str(precision))


def compile_mode(wanted: Any) -> str | None:
    """What model.compile means: true (the default mode), false, or a mode.

    null, or a model node without the key, leaves it to the environment's DIT_USE_COMPILE, TRUE or FALSE.
    """
    if wanted is None:
        switch = os.environ.get("DIT_USE_COMPILE", "")
        if switch.upper() not in SWITCH:
            raise ValueError(f"DIT_USE_COMPILE={switch} must be TRUE or FALSE")
        return SWITCH[switch.upper()]
    if isinstance(wanted, bool):
        return "default" if wanted else None
    if wanted not in MODES:
        raise ValueError(f"model.compile={wanted} must be true, false, null or one of {', '.join(MODES)}")
    return wanted


def compile_networks(algorithm: Algorithm, mode: str | None, device: torch.device) -> None:
    """Compiles the blocks of all networks of an algorithm, its teachers' too.

    Args:
        mode: of torch.compile; None: nothing is compiled.
        device: where they will run.

    Raises:
        ValueError: nothing can be compiled on this machine, or none of the networks has blocks to compile.
    """
    if mode is None:
        return
    reason = missing_compiler(device.type)
    if reason is not None:
        raise ValueError(f"model.compile: {reason}; or set model.compile=false")
    networks = [module for module in algorithm.every_module() if hasattr(module, "compile_blocks")]
    if not networks:
        name = type(algorithm).__name__
        raise ValueError(f"model.compile: the network of {name} has no compile_blocks; set model.compile=false")
    for network in networks:
        network.compile_blocks(mode)
