"""Samples while a run goes on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from flm.draws import mix_seed
from flm.samplers.canvas import Canvas
from flm.training.module import Module

SAMPLES = 5  # stream of the run's seed, beside those in training.module


class SampleEvery(Callback):
    """After validations, writes a few samples of the averaged weights to <folder>/step_0001000.txt and to the logger.

    Has its own random stream, a function of (seed, step): training is the same with and without it.

    Args:
        decode: turns tokens (B, L) on the CPU into B texts.
        folder: for the files.
        every_n_validations: sample after every so many.
        count: samples each time.
        steps: of the sampler.
        length: of a sample, L; None for the training length.
        options: of the sampler, as in the `sampling` config.
    """

    def __init__(
        self,
        decode: Callable[[Tensor], list[str]],
        folder: str | Path,
        every_n_validations: int = 1,
        count: int = 4,
        steps: int = 32,
        length: int | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        if min(every_n_validations, count, steps) < 1:
            raise ValueError("callbacks.sample: every_n_validations, count and steps must be at least 1")
        self._decode, self._folder, self._every = decode, Path(folder), every_n_validations
        self._count, self._steps, self._length, self._options = count, steps, length, dict(options or {})
        self._validations = 0

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    def on_validation_end(self, trainer: Trainer, pl_module: Module) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validations += 1
        # the first process alone: generation takes no part in the exchange between processes
        if self._validations % self._every or not trainer.is_global_zero:
            return
        step, device = trainer.global_step, pl_module.device
        generator = torch.Generator(device).manual_seed(mix_seed(pl_module.seed, step, SAMPLES))
        canvas = Canvas.blank(self._count, self._length or pl_module.algorithm.length, device)
        with pl_module.average_weights(), trainer.precision_plugin.forward_context():
            tokens = pl_module.algorithm.generate(canvas, self._steps, generator, **self._options)
        texts = self._decode(tokens.cpu())
        self._folder.mkdir(parents=True, exist_ok=True)
        marked = [f"--- sample {index + 1} of {len(texts)}\n{text}\n" for index, text in enumerate(texts)]
        (self._folder / f"step_{step:07d}.txt").write_text("\n".join(marked), encoding="utf-8")
        for logger in trainer.loggers:
            if hasattr(logger, "log_text"):
                logger.log_text("samples", columns=["step", "text"], data=[[step, text] for text in texts], step=step)
