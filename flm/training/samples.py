"""Samples while a run goes on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor

from flm import atomic
from flm.ranges import Count, Folder
from flm.training.module import Module

SAMPLES = 5  # stream of the run's seed, beside those in training.module


class SampleEvery(Callback):
    """After validations, writes a few samples of the averaged weights to <folder>/step_0001000.txt and to the logger.

    Has its own random stream, a function of (seed, step): training is the same with and without it. Several processes share
    the work.

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
        folder: Folder,
        every_n_validations: Count = 1,
        count: Count = 4,
        steps: Count = 32,
        length: Count | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        self._decode, self._folder, self._every = decode, Path(folder), every_n_validations
        self._count, self._steps, self._length, self._options = count, steps, length, dict(options or {})
        self._validations = 0

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    def on_fit_start(self, trainer: Trainer, pl_module: Module) -> None:
        pl_module.check_sampler(self._options, "callbacks.sample.options")

    def on_validation_end(self, trainer: Trainer, pl_module: Module) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validations += 1
        if self._validations % self._every:
            return
        step = trainer.global_step
        tokens = pl_module.generate(self._count, self._steps, SAMPLES, self._length, self._options)
        if not trainer.is_global_zero:
            return
        texts = self._decode(tokens)
        marked = [f"--- sample {index + 1} of {len(texts)}\n{text}\n" for index, text in enumerate(texts)]
        atomic.write_text(self._folder / f"step_{step:07d}.txt", "\n".join(marked))
        for logger in trainer.loggers:
            if hasattr(logger, "log_text"):
                logger.log_text("samples", columns=["step", "text"], data=[[step, text] for text in texts], step=step)
