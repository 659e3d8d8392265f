"""Evaluations of a network recorded as CUDA graphs, one for each shape, and replayed: one launch in place of hundreds.

A graph has memory of its own. What it reads is copied there before a replay, and the next replay overwrites what it wrote, so
that callers are given a copy: samplers may keep a prediction as long as they like.
"""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from flm.algos.algorithm import Algorithm
from flm.models.attention import in_forward_mode
from flm.models.dit import DiT

log = logging.getLogger(__name__)

SHAPES = 4  # recorded of a network: each keeps the memory of one evaluation
WARM_UP = 3  # evaluations ahead of a recording, in which blocks are compiled and libraries choose their kernels


class Recording(Protocol):
    """One evaluation: what it reads, what it writes, and `replay`, which does it again."""

    inputs: list[Tensor | None]
    output: Tensor

    def replay(self) -> None: ...


class Graph:
    """On CUDA. All graphs of a process share one pool of memory: they are replayed one at a time."""

    _pool: Any = None

    def __init__(self, function: Callable[..., Tensor], inputs: list[Tensor | None]):
        self.inputs = inputs
        device = next(tensor.device for tensor in inputs if tensor is not None)
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    function(*inputs)
            torch.cuda.current_stream().wait_stream(side)
            if Graph._pool is None:
                Graph._pool = torch.cuda.graph_pool_handle()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, Graph._pool, capture_error_mode="thread_local"):
                self.output = function(*inputs)

    def replay(self) -> None:
        self._graph.replay()


class Rerun:
    """On devices without graphs, to try what is around them: the same memory, and the function once more."""

    def __init__(self, function: Callable[..., Tensor], inputs: list[Tensor | None]):
        self.inputs, self._function, self.output = inputs, function, function(*inputs)

    def replay(self) -> None:
        self.output.copy_(self._function(*self.inputs))


class Captured:
    """The method `hidden` of a network, recorded at the first evaluation of each shape.

    It runs as it is where gradients are wanted, in training mode and forward mode, with documents or a cache, and beyond SHAPES
    shapes, which is said once. Weights that change in place are followed; where they have moved, it is recorded anew.

    Args:
        network: with parameters, whose method it is.
        record: how; `Graph` or `Rerun`.
    """

    def __init__(self, network: DiT, record: Callable[..., Recording]):
        self._network, self._record = network, record
        self._function = type(network).hidden
        self._parameters, self._table = list(network.parameters()), network.input_table
        self._recordings: dict[tuple[Any, ...], Recording] = {}
        self._where: tuple[int, ...] = ()
        self._has_said = False

    def __call__(self, *inputs: Any, **named: Any) -> Tensor:
        plain = not named and all(x is None or isinstance(x, Tensor) for x in inputs)
        plain = plain and self._network.input_table is self._table  # else torch.func has lent it other weights
        if not plain or torch.is_grad_enabled() or self._network.training or in_forward_mode():
            return self._function(self._network, *inputs, **named)
        recording = self._recording_of(inputs)
        if recording is None:
            return self._function(self._network, *inputs)
        for memory, given in zip(recording.inputs, inputs, strict=True):
            if memory is not None:
                memory.copy_(given)
        recording.replay()
        return recording.output.clone()

    def _recording_of(self, inputs: tuple[Tensor | None, ...]) -> Recording | None:
        """The one of such inputs, made if there is room for it."""
        where = tuple(parameter.data_ptr() for parameter in self._parameters)
        if where != self._where:
            self._recordings, self._where = {}, where
        device = self._parameters[0].device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (dtype, *(None if x is None else (x.shape, x.dtype) for x in inputs))
        if key not in self._recordings:
            if len(self._recordings) == SHAPES:
                if not self._has_said:
                    log.warning("cuda_graphs: %d shapes are recorded; further ones run as without it, slower", SHAPES)
                    self._has_said = True
                return None

            def evaluate(*inputs: Tensor | None) -> Tensor:
                # a copy of a weight that autocast keeps until its block ends would be gone at the next replay
                with torch.autocast(device, dtype, enabled=dtype is not None, cache_enabled=False):
                    return self._function(self._network, *inputs)

            self._recordings[key] = self._record(evaluate, [None if x is None else x.clone() for x in inputs])
        return self._recordings[key]

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a network is a plain one."""
        return None


def capture(algorithm: Algorithm, record: Callable[..., Recording]) -> None:
    """The networks of an algorithm are evaluated so from now on.

    Raises:
        ValueError: it has none whose evaluations have a fixed shape.
    """
    networks = [module for module in algorithm.every_module() if isinstance(module, DiT) and not module.causal]
    if not networks:
        raise ValueError(
            f"eval.acceleration=cuda_graphs: {type(algorithm).__name__} has no network of fixed shape that reads both ways "
            "(flm.models.dit.DiT): set eval.acceleration=null"
        )
    for network in networks:
        network.captured = Captured(network, record)


def cuda_graphs(algorithm: Algorithm, device: torch.device) -> None:
    """As of the registry's `accelerations`."""
    if device.type != "cuda":
        raise ValueError(f"eval.acceleration=cuda_graphs needs a CUDA device, this is {device}: set eval.acceleration=null")
    capture(algorithm, Graph)
