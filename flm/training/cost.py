"""What training steps cost: floating-point operations, beside what a device can do, and memory."""

import resource
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

# Dense bf16 FLOP/s of makers' data sheets by a part of the device's name; the first that matches counts.
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
    """Dense bf16 FLOP/s of a device of PEAK_FLOPS; None for others."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_memory_mb(device: torch.device) -> float:
    """Most MiB that tensors took on a CUDA device, or else that were resident of the whole process, since it was started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # ru_maxrss will not do on Linux: it begins at what the parent process held
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**10 if sys.platform != "darwin" else 2**20)  # kilobytes, on macOS bytes


class FlopCount:
    """Model FLOP of everything that networks do while watched.

    A network is a module with `flops_per_token(length)`, the operations of one evaluation, forward. An evaluation of N tokens
    adds N times that, or 3 N times that if gradients will flow back through it (backward counts as two). For FLM's step on a
    transformer this is the usual

        6 N_matmul + 12 L D per block      a token,

    N_matmul the parameters of blocks and output table. Evaluations for targets (teachers, the jumps of the semigroup) count
    once each. What is left out: the Gram matrix of the input table, a table's second product in expected embeddings, the
    tangents of forward-mode derivatives, and everything computed a second time.

    Attributes:
        total: so far.
    """

    def __init__(self) -> None:
        self.total = 0
        self.watched = 0

    @contextmanager
    def watching(self, modules: Iterable[nn.Module]) -> Iterator["FlopCount"]:
        """Counts inside the block; `watched` says how many networks were found."""
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
