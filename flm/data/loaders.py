"""Loaders of one process's micro-batches from a given optimiser step on, and how rows become a `Batch`."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from flm.algos.algorithm import Batch
from flm.data.blocks import Rows, TokenBlocks
from flm.data.layouts import Row
from flm.data.order import ExampleOrder, ShareSampler


@dataclass(frozen=True)
class Share:
    """The micro-batches that one process takes of optimiser steps start .. stop-1.

    Attributes:
        rows: of the global batch, over all processes and accumulation steps.
        accumulation: micro-batches per optimiser step and process.
    """

    start: int
    stop: int
    rows: int
    accumulation: int = 1
    rank: int = 0
    world_size: int = 1

    @property
    def batch_size(self) -> int:
        """Rows of a micro-batch."""
        return self.rows // (self.world_size * self.accumulation)

    @property
    def own(self) -> range:
        """This process's rows of each global batch."""
        each = self.rows // self.world_size
        return range(self.rank * each, (self.rank + 1) * each)


class StepLoader:
    """Base of loaders of training batches.

    The length counts from step 0, because Lightning compares it with the batches of the whole run, those before an
    interruption included. Where a loader starts follows from the trainer's step alone. The two state methods are there only
    so that Lightning does not warn of a lost position.
    """

    share: Share

    def __len__(self) -> int:
        return self.share.stop * self.share.accumulation

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class TrainLoader(StepLoader, DataLoader):
    """Batches of blocks from a token cache, in the order that the seed determines."""

    def __init__(self, blocks: TokenBlocks, seed: int, share: Share, options: dict[str, Any]):
        self.share = share
        order = ExampleOrder(len(blocks), seed)
        part = (share.start, share.stop, share.rank, share.world_size, share.accumulation)
        super().__init__(
            Rows(blocks), batch_sampler=ShareSampler(order, share.batch_size, *part), collate_fn=collate, **options
        )


class StreamLoader(Protocol):
    """The training batches of a streamed corpus, and the position of its streams between optimiser steps."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int:
        """See `StepLoader`."""
        ...

    def state(self, step: int | None = None) -> dict[str, Any]:
        """The position of this process's streams before an optimiser step, plain values; step None: the newest reached.

        Only the last few steps are kept.
        """
        ...

    def joined(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The states of all processes joined, from which any number of processes can continue."""
        ...

    def epochs(self) -> dict[str, float]:
        """Passes over each source that this process's readers have completed, on average."""
        ...


def collate(rows: list[Row]) -> Batch:
    tokens, weight, documents, padding = zip(*rows, strict=True)

    def stacked(parts: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor | None:
        """None if all are None; else those that are None count as zeros."""
        if all(part is None for part in parts):
            return None
        none = torch.zeros(tokens[0].shape, dtype=dtype)
        return torch.stack([none if part is None else part for part in parts])

    return Batch(
        torch.stack(tokens),
        torch.stack(weight),
        stacked(documents, torch.long),
        padding=stacked(padding, torch.bool),
    )


def collate_numbered(items: list[tuple[Row, float, int]]) -> Batch:
    """A batch of rows, each with a factor of its weight and its number."""
    batch = collate([row for row, _, _ in items])
    batch.weight *= torch.tensor([weight for _, weight, _ in items])[:, None]
    batch.numbers = torch.tensor([number for _, _, number in items])
    return batch


def ignore_stop_signals(worker: int = 0) -> None:
    """Makes a loader's worker ignore signals that ask the run to stop, which schedulers and Ctrl-C send to all processes.

    The run still needs its workers while it saves itself. They end with the process that reads from them.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
