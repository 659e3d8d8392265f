"""model.compile, and the switch DIT_USE_COMPILE: whether a run compiles its networks, and how."""

import os

import torch
from omegaconf import DictConfig

from flm.algos.algorithm import Algorithm
from flm.compilation import missing_compiler

# torch.compile's, without those that use CUDA graphs: a graph's output is overwritten by the next call, and all blocks share
# one compilation, so a block's output would be gone before the backward pass reads it.
MODES = ("default", "max-autotune-no-cudagraphs")
SWITCH = {"TRUE": "default", "1": "default", "FALSE": None, "0": None, "": None}


def compile_mode(config: DictConfig) -> str | None:
    """Mode of torch.compile for the networks of a run; None for none.

    model.compile is true (the default mode), false, or a mode; null, or a model node without the key, leaves it to the
    environment's DIT_USE_COMPILE, TRUE or FALSE.
    """
    wanted = config.model.get("compile")
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


def compile_networks(algorithm: Algorithm, config: DictConfig, device: torch.device) -> None:
    """Compiles the blocks of all networks of an algorithm, its teachers' too, if the run asks for it.

    Args:
        device: where they will run.

    Raises:
        ValueError: nothing can be compiled on this machine, or none of the networks has blocks to compile.
    """
    mode = compile_mode(config)
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
