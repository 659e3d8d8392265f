"""What a retrofit watches while it trains: time to the end, passes over each source, gradients of new and old parts."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from flm.algos.algorithm import Batch
from flm.ranges import Count
from flm.training.progress import writes_now


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


class SourceEpochs(Callback):
    """Logs data/epochs_<source>: passes over it completed, on average over the readers of the first process."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, epochs in trainer.datamodule.epochs().items() if writes_now(trainer) else ():
            pl_module.log(f"data/epochs_{name}", epochs, batch_size=1)


class GradientNorms(Callback):
    """Logs grad/norm_<name>, the Euclidean norm of the gradients of each part, and grad/norm_others of what is in none.

    Clipping scales all gradients alike: a new part with large ones starves a pretrained network, which this shows.

    Args:
        parts: part of a parameter's name, by the name to log.
    """

    def __init__(self, parts: Mapping[str, str]):
        self.parts = dict(parts)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if (trainer.global_step + 1) % trainer.log_every_n_steps:  # Lightning logs after the step
            return
        gradients: dict[str, list[Tensor]] = {name: [] for name in (*self.parts, "others")}
        for name, parameter in pl_module.algorithm.named_parameters():
            if parameter.grad is not None:
                part = next((label for label, key in self.parts.items() if key in name), "others")
                gradients[part].append(parameter.grad)
        for label, tensors in gradients.items():
            if tensors:
                norm = torch.nn.utils.get_total_norm(tensors)
                # under FSDP2 every process has a part of the sum
                pl_module.log(f"grad/norm_{label}", norm.full_tensor() if isinstance(norm, DTensor) else norm)
