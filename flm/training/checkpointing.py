"""Checkpoints of a training run: when they are written, and how Lightning writes and reads them."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO

from flm import atomic
from flm.checkpoints import files
from flm.handed_in import read_json
from flm.ranges import Count, Folder

BEST, BEST_RECORD = "best_validation.ckpt", "best_validation.json"


class AtomicCheckpointIO(CheckpointIO):
    """Writes whole files or none, and reads them without executing anything; see `flm.checkpoints.files`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        files.save(checkpoint, path)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """CPU tensors and plain values. The other arguments are Lightning's, and have no effect."""
        return files.load(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        atomic.remove(path)


class CheckpointEvery(Checkpoint):
    """Writes step_0001000.ckpt every so many optimiser steps and at the end; last.ckpt is a link to the newest.

    All processes call it. If one cannot write, all raise.

    Lightning's own callback does not save the steps after the last multiple, saves the step it resumed from again in the
    middle of an accumulation, and writes last.ckpt a second time in full.

    A strategy may write while training continues (`flm.split_checkpoints.strategy`). It then has methods `after_writing(then)`,
    which calls `then` once the file is whole, and `finish_writing()`, which waits. No file has its name before it is whole.

    Args:
        dirpath: folder for the files.
        every_n_train_steps: in optimiser steps.
        keep: number of step files to keep, the newest; null: all.
        save_last: whether to keep last.ckpt, which takes no room of its own.
        keep_best: whether to keep best_validation.ckpt, the checkpoint with the lowest validation loss, described in
            best_validation.json.
    """

    def __init__(
        self,
        dirpath: Folder,
        every_n_train_steps: Count = 1000,
        keep: Count | None = None,
        save_last: bool = True,
        keep_best: bool = False,
    ):
        self.dirpath, self.every_n_train_steps = Path(dirpath), every_n_train_steps
        self.keep, self.save_last, self.keep_best = keep, save_last, keep_best
        self._written: list[Path] = []  # the last may still be in writing
        self._saved_step, self._best = 0, math.inf

    @property
    def last_path(self) -> Path | None:
        """The newest whole file of this run; None: there is none yet."""
        return next((path for path in reversed(self._written) if path.exists()), None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # the step that a run resumes at is on disk already
        self._saved_step = trainer.global_step
        self._written, self._best = [], math.inf
        if trainer.ckpt_path is not None:
            self._written = [Path(trainer.ckpt_path)]
            # the best loss is not in the checkpoint, which may have been written before the validation of its step
            record = self.dirpath / BEST_RECORD
            if self.keep_best and record.is_file():
                try:
                    self._best = float(read_json(record)["loss_per_token"])
                except (OSError, ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{record}: damaged: remove it, and the best is looked for anew ({error!r})") from error

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # called after every micro-batch; `_save` writes a step only once, after the micro-batch that completed it
        if trainer.global_step % self.every_n_train_steps == 0 or trainer.should_stop:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        report = getattr(pl_module, "report", None)
        if not self.keep_best or trainer.sanity_checking or trainer.state.fn != "fit" or report is None:
            return
        if report.mean < self._best:  # the same number on every process
            self._best = report.mean
            record = {"step": trainer.global_step, "measure": report.measure, "loss_per_token": report.mean}
            describe = partial(atomic.write_json, self.dirpath / BEST_RECORD, record)
            save_everywhere(trainer, self.dirpath / BEST, self.last_path, describe)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)
        _finish_writing(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step == self._saved_step:
            return
        path = self.dirpath / f"step_{trainer.global_step:07d}.ckpt"
        last_good = self.last_path
        self._written.append(path)
        self._saved_step = trainer.global_step
        save_everywhere(trainer, path, last_good, partial(self._now_whole, path))
        if trainer.should_stop:  # other callbacks then print the file to resume from
            _finish_writing(trainer)

    def _now_whole(self, path: Path) -> None:
        if self.save_last:
            atomic.alias(path, self.dirpath / "last.ckpt")
        if self.keep is not None:
            older = [p for p in self.dirpath.glob("step_*.ckpt") if _step(p) <= _step(path)]
            for old in sorted(older, key=_step)[: -self.keep]:
                atomic.remove(old)


def save_everywhere(trainer: Trainer, path: Path, last_good: Path | None, then: Callable[[], object] = lambda: None) -> None:
    """Writes the checkpoint of all processes to one file, in the first process; every process must call it.

    Args:
        last_good: an older whole file, to name in errors; None: there is none.
        then: called in the first process once the file is whole.

    Raises:
        OSError: in every process, if the first one could not write; one line, with the last good file.
    """
    problem = None
    try:
        trainer.save_checkpoint(path, False)  # everything, not the weights alone
    except OSError as error:
        problem = str(error)
        trainer.strategy.barrier()  # the others wait in the barrier at the end of save_checkpoint
    problem = trainer.strategy.broadcast(problem)
    if problem is not None:
        raise OSError(f"{problem}; last good checkpoint: {last_good or 'none'}; free some room, then the same command goes on")
    if trainer.is_global_zero:
        later = getattr(trainer.strategy, "after_writing", None)
        then() if later is None else later(then)


def _finish_writing(trainer: Trainer) -> None:
    finish = getattr(trainer.strategy, "finish_writing", None)
    if finish is not None:
        finish()


def _step(path: Path) -> int:
    number = path.stem.removeprefix("step_")
    return int(number) if number.isdigit() else 1 << 62  # not one of our names: it never counts as old
