"""Callbacks for retrofits: time to the end, passes over each source, and gradient norms of new and old parts."""

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
    """Prints once how many tokens the run will see in all, how fast, and how long the rest takes.

    Tokens are counted over all processes. Neither the first optimiser step, which compiles, nor the time of validations counts.

    Args:
        after_steps: optimiser steps to measure.

    Attributes:
        message: the printed text; None: nothing is printed yet.
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
    """The forecast in words. Its time leaves out validation and checkpoints."""
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
    """Logs data/epochs_<source>, the passes over a source completed, as a mean over the readers of the first process."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, epochs in trainer.datamodule.epochs().items() if writes_now(trainer) else ():
            pl_module.log(f"data/epochs_{name}", epochs, batch_size=1)


class GradientNorms(Callback):
    """Logs grad/norm_<name>, the Euclidean norm of each part's gradients, and grad/norm_others for the rest.

    Clipping scales all gradients alike, so large gradients of a new part leave a pretrained network almost none.

    Args:
        parts: by the name to log, a string that the names of the part's parameters contain.
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
                # under FSDP2 each process holds a part of the norm
                pl_module.log(f"grad/norm_{label}", norm.full_tensor() if isinstance(norm, DTensor) else norm)
