"""Batches made from a stream of rows, with the state of the stream after each optimiser step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from flm.algos.algorithm import Batch
from flm.data.layouts import Row
from flm.data.loaders import Share, StepLoader, collate
from flm.qwen.row_stream import RowStream

_KEPT = 4  # steps whose states are kept; a trainer fetches at most one batch ahead


class MixtureLoader(StepLoader):
    """A `flm.data.loaders.StreamLoader` with at most one worker, since a stream is read by one process."""

    def __init__(self, open_stream: Callable[[], RowStream], share: Share, options: dict[str, Any]):
        self.share = share
        self._states = {share.start: open_stream().state()}  # faulty data raises here, not in a worker
        options = options | {"num_workers": min(1, options["num_workers"]), "persistent_workers": False}
        self._loader = DataLoader(_StreamBatches(open_stream, share), batch_size=None, **options)

    def __iter__(self) -> Iterator[Batch]:
        step = self.share.start
        for batch, state in self._loader:
            if batch is None:
                raise ValueError(state)
            if state is not None:
                step += 1
                self._states[step] = state
                self._states.pop(step - _KEPT, None)
            yield batch

    def state(self, step: int | None = None) -> dict[str, Any]:
        step = max(self._states) if step is None else step
        return {"step": step, **self._states[step]}

    def joined(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {**states[0], "at": {key: at for state in states for key, at in state["at"].items()}}

    def epochs(self) -> dict[str, float]:
        passes: dict[str, list[int]] = {}
        for key, at in self._states[max(self._states)]["at"].items():
            passes.setdefault(key.partition("/")[2], []).append(at[0])
        return {name: sum(found) / len(found) for name, found in passes.items()}


class _StreamBatches(IterableDataset):
    """Micro-batches, each with None or, for the last of a step, the stream's state after it.

    A ValueError comes as (None, message), since an error that a worker raises would show the worker's traceback.
    """

    def __init__(self, open_stream: Callable[[], RowStream], share: Share):
        self.open_stream, self.share = open_stream, share

    def __iter__(self) -> Iterator[tuple[Batch | None, dict[str, Any] | str | None]]:
        try:
            stream = self.open_stream()
            for step in range(self.share.start, self.share.stop):
                rows: list[Row] = []
                for row in stream.step(step):
                    if len(rows) == self.share.batch_size:
                        yield collate(rows), None
                        rows = []
                    rows.append(row)
                yield collate(rows), stream.state()  # with the batch: a trainer may save before it asks for the next one
        except ValueError as error:
            yield None, str(error)
