"""The throughput of training: tokens per second, waiting for data, memory and utilisation."""

import time
from collections import deque
from contextlib import ExitStack
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from flm.algos.algorithm import Batch
from flm.ranges import Positive
from flm.training.cost import FlopCount, device_name, peak_flops, peak_memory_mb
from flm.training.progress import writes_now


class _Step(NamedTuple):
    """One batch of one process."""

    seconds: float
    waited: float
    tokens: int
    flops: int


class Throughput(Callback):
    """Logs averages over recent batches whenever a logger writes:

        perf/tokens_per_second              of all processes
        perf/tokens_per_second_per_device   of this process
        perf/data_wait_fraction             share of the time spent waiting for the next batch, in [0, 1]
        perf/peak_memory_mb                 see `peak_memory_mb`
        perf/model_flop_utilisation         FLOP per second of the networks divided by the device's peak, see `FlopCount`

    Time between batches counts (data loading, checkpoints). Validation and sampling do not count, nor does the first batch,
    which compiles. Utilisation is left out if the device's peak is unknown, or no network counts its operations.

    Args:
        window: number of batches of a process to average over.
        peak_flops_per_second: of one device, in the precision of training; None: the dense bf16 peak of known GPUs.
    """

    def __init__(self, window: Annotated[int, Ge(2)] = 50, peak_flops_per_second: Positive | None = None):
        self._recent: deque[_Step] = deque(maxlen=window)
        self._given_peak, self._peak = peak_flops_per_second, peak_flops_per_second
        self._count, self._watching = FlopCount(), ExitStack()
        self._forget()

    def _forget(self, ended: float | None = None) -> None:
        """Starts timing the next batch at `ended`; None: the next batch is not timed."""
        self._ended, self._waited, self._saved = ended, 0.0, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._recent.clear()
        self._forget()
        self._watching.close()
        self._count = self._watching.enter_context(FlopCount().watching(pl_module.algorithm.every_module()))
        self._processes, device = trainer.world_size, pl_module.device
        self._peak = peak_flops(device) if self._given_peak is None else self._given_peak
        if self._peak is None and device.type != "cpu":
            rank_zero_warn(
                f"perf/model_flop_utilisation is not reported: the peak of {device_name(device)} is not known; "
                "give callbacks.throughput.peak_flops_per_second"
            )

    def on_train_end(self, *_: Any) -> None:
        self._watching.close()

    on_exception = on_train_end

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._saved = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        now = time.perf_counter()
        if self._ended is not None and not self._saved:  # writing a checkpoint between batches is not waiting for data
            self._waited = now - self._ended
        self._count.total = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: Any) -> None:
        now = time.perf_counter()
        if self._ended is not None:
            self._recent.append(_Step(now - self._ended, self._waited, batch.tokens.numel(), self._count.total))
            pl_module.log_dict(self._averages(pl_module) if writes_now(trainer) else {}, batch_size=1)
        self._forget(now)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget()

    @property
    def tokens_per_second(self) -> float | None:
        """Of all processes; None before the first timed batch."""
        return self._processes * self._over_time("tokens") if self._recent else None

    def _over_time(self, name: str) -> float:
        return sum(getattr(step, name) for step in self._recent) / max(sum(step.seconds for step in self._recent), 1e-9)

    def _averages(self, pl_module: LightningModule) -> dict[str, float]:
        found = {
            "perf/tokens_per_second": self._processes * self._over_time("tokens"),
            "perf/tokens_per_second_per_device": self._over_time("tokens"),
            "perf/data_wait_fraction": self._over_time("waited"),
            "perf/peak_memory_mb": peak_memory_mb(pl_module.device),
        }
        if self._peak is not None and self._count.watched > 0:
            found["perf/model_flop_utilisation"] = self._over_time("flops") / self._peak
        return found
