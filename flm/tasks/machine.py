"""What a run computes on and in: device, precision, and whether its networks are compiled."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flm.algos.algorithm import Algorithm
from flm.device import device_named, missing_compiler, precision_on

log = logging.getLogger(__name__)

# torch.compile's, without those that use CUDA graphs: a graph's output is overwritten by the next call, and all blocks share
# one compilation, so a block's output would be gone before the backward pass reads it.
MODES = ("default", "max-autotune-no-cudagraphs")
# of DIT_USE_COMPILE, which compiles as the published runs did
SWITCH = {"TRUE": MODES[1], "1": MODES[1], "FALSE": None, "0": None}


@dataclass(frozen=True)
class Compilation:
    """
    Attributes:
        mode: of torch.compile; None: networks are not compiled.
        is_demanded: by the config: then a network that cannot be compiled is an error, else it stays as it is.
    """

    mode: str | None = None
    is_demanded: bool = True


@dataclass(frozen=True)
class Machine:
    """
    Attributes:
        device: CUDA where it is, unless the CPU is asked for.
        precision: as Lightning names them.
        compilation: of its networks.
    """

    device: torch.device
    precision: str
    compilation: Compilation = Compilation()

    @classmethod
    def of(cls, trainer: Mapping[str, Any], model: Mapping[str, Any]) -> "Machine":
        """As these groups of the config say."""
        device = device_of(trainer["accelerator"])
        return cls(device, precision_of(trainer["precision"], device), compilation(model.get("compile"), device))


def device_of(accelerator: str) -> torch.device:
    """Of trainer.accelerator: CUDA if there is one, unless the CPU is asked for. ValueError: there is no GPU."""
    return device_named(None if accelerator == "auto" else accelerator, "trainer.accelerator")


def precision_of(precision: Any, device: torch.device) -> str:
    """What trainer.precision means; null is bf16-mixed on CUDA, and 32-true elsewhere, where bf16 is slower."""
    return precision_on(device, None if precision is None else str(precision))


def compilation(wanted: Any, device: torch.device) -> "Compilation":
    """What model.compile means: true (the default mode), false, or a mode.

    null, or a model node without the key, leaves it to the environment's DIT_USE_COMPILE, TRUE or FALSE; where that is not set,
    networks are compiled on CUDA alone: on a CPU it takes longer than it saves in a run of minutes.
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
    """Compiles the blocks of all networks of an algorithm, its teachers' too.

    Args:
        device: where they will run.

    Raises:
        ValueError: it is demanded, and nothing can be compiled on this machine, or none of the networks has blocks to compile.
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
