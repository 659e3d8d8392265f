"""Batches out of a stream of rows, with where the stream stands after each optimiser step."""

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from flm.algos.algorithm import Batch
from flm.data.layouts import Row
from flm.qwen.mixture import RowStream

_KEPT = 4  # steps whose state is remembered: a trainer fetches at most one batch before it needs it


class StreamBatches(IterableDataset):
    """Micro-batches of optimiser steps start .. stop-1, and the stream's state behind the last of each step.

    An error that a user can mend comes as its message, since what a worker raises reaches the process with its traceback.
    """

    def __init__(self, open_stream: Callable[[], RowStream], size: int, start: int, stop: int, collate: Callable[..., Batch]):
        self.open_stream, self.size, self.start, self.stop, self.collate = open_stream, size, start, stop, collate

    def __iter__(self) -> Iterator[tuple[Batch | None, dict[str, Any] | str | None]]:
        try:
            stream = self.open_stream()
            for step in range(self.start, self.stop):
                rows: list[Row] = []
                left = len(stream.share) // self.size
                for row in stream.step(step):
                    rows.append(row)
                    if len(rows) == self.size:
                        left -= 1
                        yield self.collate(rows), None if left else stream.state()
                        rows = []
        except ValueError as error:
            yield None, str(error)


class StreamLoader:
    """Loader of one process's micro-batches. It reads in at most one process beside this one, as a stream has one reader.

    Its length counts from step 0, as `flm.data.module.TrainLoader`'s does.

    Attributes:
        states: by optimiser step, where the stream stands before it; those of the last few steps.
    """

    def __init__(self, batches: StreamBatches, accumulation: int, options: dict[str, Any]):
        options = options | {"num_workers": min(1, options["num_workers"]), "persistent_workers": False}
        self._batches, self._loader = batches, DataLoader(batches, batch_size=None, **options)
        self.accumulation, self.states = accumulation, dict[int, dict[str, Any]]()

    def __iter__(self) -> Iterator[Batch]:
        step = self._batches.start
        for batch, state in self._loader:
            if batch is None:
                raise ValueError(state)
            if state is not None:
                step += 1
                self.states[step] = state
                self.states.pop(step - _KEPT, None)
            yield batch

    def __len__(self) -> int:
        return self._batches.stop * self.accumulation

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
