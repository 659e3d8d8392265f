"""When checkpoints are written, and how Lightning writes and reads them."""

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
        """CPU tensors and plain values, whatever is asked for: nothing else is ever loaded."""
        return files.load(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        atomic.remove(path)


class CheckpointEvery(Checkpoint):
    """Writes step_0001000.ckpt every so many optimiser steps and at the end, with last.ckpt the newest of them.

    All processes call it, and all end where one cannot write.

    Lightning's own callback leaves out the steps after the last multiple, writes the step it resumed from again in the
    middle of an accumulation, and writes last.ckpt a second time in full.

    Args:
        dirpath: folder for the files.
        every_n_train_steps: in optimiser steps.
        keep: how many step files to keep, newest first; null keeps all.
        save_last: whether to keep the name last.ckpt, which takes no room of its own.
        keep_best: whether to keep best_validation.ckpt, the one with the lowest validation loss, described by
            best_validation.json beside it.

    A strategy may go on writing while training does (`flm.split_checkpoints.strategy`): it has methods `after_writing`, to be
    told what then is to be done, and `finish_writing`; no file has its name before it is whole.
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
        self._written: list[Path] = []  # or being written
        self._saved_step, self._best = 0, math.inf

    @property
    def last_path(self) -> Path | None:
        """The newest whole file of this run; None: there is none yet."""
        return next((path for path in reversed(self._written) if path.exists()), None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # a resumed run stands at a step that is on disk already
        self._saved_step = trainer.global_step
        self._written, self._best = [], math.inf
        if trainer.ckpt_path is not None:
            self._written = [Path(trainer.ckpt_path)]
            # not in the checkpoint itself: the one resumed from may have been written before its validation
            record = self.dirpath / BEST_RECORD
            if self.keep_best and record.is_file():
                try:
                    self._best = float(read_json(record)["loss_per_token"])
                except (OSError, ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{record}: damaged: remove it, and the best is looked for anew ({error!r})") from error

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # runs after every micro-batch: only the one that completed the step finds the step new, so no file is written
        # while gradients wait
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
        if trainer.should_stop:  # others say next from where the run can go on
            _finish_writing(trainer)

    def _now_whole(self, path: Path) -> None:
        if self.save_last:
            atomic.alias(path, self.dirpath / "last.ckpt")
        if self.keep is not None:
            older = [p for p in self.dirpath.glob("step_*.ckpt") if _step(p) <= _step(path)]
            for old in sorted(older, key=_step)[: -self.keep]:
                atomic.remove(old)


def save_everywhere(trainer: Trainer, path: Path, last_good: Path | None, then: Callable[[], object] = lambda: None) -> None:
    """The checkpoint of all processes in one file, written by the first one; every process must call it.

    Args:
        then: what the first process does once the file is whole.

    Raises:
        OSError: on every process where the first one could not write; in one line, with the last good file.
    """
    problem = None
    try:
        trainer.save_checkpoint(path, False)  # everything, not the weights alone
    except OSError as error:
        problem = str(error)
        trainer.strategy.barrier()  # the one at the end of save_checkpoint, where the others wait
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
    return int(number) if number.isdigit() else 1 << 62  # not one of ours: never the oldest
