"""How long a run will take, from what it has measured of itself."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from flm.algos.algorithm import Batch
from flm.ranges import Count


class Forecast(Callback):
    """Prints once how many tokens a run will have seen, at which rate, and how long that takes from here.

    Tokens count once, over all processes, whatever the accumulation. The first optimiser step, which compiles, does not count,
    nor do validations that fall into the time.

    Args:
        after_steps: optimiser steps to measure.

    Attributes:
        message: what was printed; None before.
    """

    def __init__(self, after_steps: Count = 50):
        self.after_steps = after_steps
        self.message: str | None = None
        self._clear()

    def _clear(self) -> None:
        self._begin_step: int | None = None
        self._begin, self._tokens, self._paused_at, self._paused = 0.0, 0, 0.0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clear()
        self._first = trainer.global_step + 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused_at = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused += time.perf_counter() - self._paused_at

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self.message is not None:
            return
        if self._begin_step is None:
            if trainer.global_step >= self._first:
                self._begin_step, self._begin, self._paused = trainer.global_step, time.perf_counter(), 0.0
            return
        self._tokens += batch.tokens.numel() * trainer.world_size
        steps = trainer.global_step - self._begin_step
        if steps >= self.after_steps:
            seconds = time.perf_counter() - self._begin - self._paused
            self.message = forecast(self._tokens / steps, seconds / steps, trainer.global_step, trainer.max_steps)
            if trainer.is_global_zero:
                print(self.message, flush=True)


def forecast(tokens_per_step: float, seconds_per_step: float, step: int, max_steps: int) -> str:
    """In words; times without validation and checkpoints."""
    left = (max_steps - step) * seconds_per_step
    return (
        f"{tokens_per_step / seconds_per_step:,.0f} tokens/s: {max_steps - step:,} more steps of {tokens_per_step:,.0f} tokens "
        f"({tokens_per_step * max_steps / 1e9:,.2f} billion in all) take {_duration(left)} without validation"
    )


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
