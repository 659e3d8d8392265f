"""How fast a run goes."""

import time
from collections import deque
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from flm.algos.algorithm import Batch


class Throughput(Callback):
    """Logs perf/tokens_per_second: tokens of all processes over wall time, averaged over recent batches.

    Time between batches counts (data loading, checkpoints); validation and sampling do not, nor does the first batch,
    which compiles.

    Args:
        window: batches of one process to average over.
    """

    def __init__(self, window: int = 50):
        self._recent: deque[tuple[float, int]] = deque(maxlen=window)
        self._last: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._recent.clear()
        self._last = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self._recent.append((now - self._last, batch.tokens.numel() * trainer.world_size))
            seconds, tokens = (sum(column) for column in zip(*self._recent, strict=True))
            pl_module.log("perf/tokens_per_second", tokens / max(seconds, 1e-9), prog_bar=True, batch_size=1)
        self._last = now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = None
