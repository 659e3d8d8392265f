"""The cost of training steps: floating-point operations, the peak of the device, and memory."""

import resource
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

# Dense bf16 FLOP/s from data sheets, by a part of the device's name; the first match counts.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of a device; None if it is not in PEAK_FLOPS."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_memory_mb(device: torch.device) -> float:
    """Peak MiB since the process began: of tensors on a CUDA device, else of resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # on Linux ru_maxrss starts at the value of the parent process
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**10 if sys.platform != "darwin" else 2**20)  # kilobytes, on macOS bytes


class FlopCount:
    """Counts the model FLOP of all evaluations of networks.

    A network is a module with `flops_per_token(length)`, the operations of one forward evaluation. An evaluation of N tokens
    adds N times that, or 3 N times if it has gradients (the backward pass counts as two). For FLM's step on a transformer this
    is the usual count per token

        6 N_matmul + 12 L D per block,

    with N_matmul the parameters of blocks and output table. Evaluations for targets (teachers, jumps of the semigroup) count
    once each. Not counted are the Gram matrix of the input table, the second product of a table in expected embeddings,
    tangents of forward-mode derivatives, and recomputation.

    Attributes:
        total: FLOP so far.
        watched: number of networks found by `watching`.
    """

    def __init__(self) -> None:
        self.total = 0
        self.watched = 0

    @contextmanager
    def watching(self, modules: Iterable[nn.Module]) -> Iterator["FlopCount"]:
        """Counts inside the block."""
        networks = {id(module): module for module in modules if hasattr(module, "flops_per_token")}
        handles = [network.register_forward_hook(self._count) for network in networks.values()]
        self.watched = len(networks)
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _count(self, network: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        batch, length = output.shape
        passes = 3 if torch.is_grad_enabled() and output.hidden.requires_grad else 1
        self.total += passes * batch * length * network.flops_per_token(length)
