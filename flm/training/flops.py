"""Counting the floating-point operations of training steps by watching the networks that run."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


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
