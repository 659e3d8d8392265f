"""The status of a run in a file of its folder: running, finished, stopped or failed, at which step, and why."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from flm import atomic
from flm.handed_in import read_json

FILE = "status.json"


@contextmanager
def recorded(folder: Path, trainer: Trainer) -> Iterator[None]:
    """Keeps <folder>/status.json while the trainer fits inside the block.

    A killed process leaves "running" behind. A start that is refused before its first step writes nothing.

    `step` is the number of optimiser steps done, `max_steps` the number wanted (-1: no limit). `reason` is the attribute
    `reason` of a callback that ended the run, or the error in a line. `cpu_seconds` is the processor time of the first process
    since its first step, validation included, plus that of earlier starts of the run. On a shared machine it measures the cost
    better than elapsed time.
    """
    begun = _Begun(folder)
    trainer.callbacks.append(begun)
    try:
        yield
    except BaseException as error:
        if begun.has:
            _write_end(folder, trainer, error, begun.cpu_seconds)
        raise
    if not begun.has:
        return
    reasons = [reason for callback in trainer.callbacks if (reason := getattr(callback, "reason", None)) is not None]
    done = trainer.global_step >= trainer.max_steps if trainer.max_steps > 0 else not reasons
    word, reason = ("finished", "") if done else ("stopped", "; ".join(map(str, reasons)))
    _write(folder, trainer, word, reason, begun.cpu_seconds)


class _Begun(Callback):
    def __init__(self, folder: Path):
        self.folder, self.has = folder, False
        self._begin = self._before = 0.0

    @property
    def cpu_seconds(self) -> float:
        return self._before + time.process_time() - self._begin

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has, self._begin = True, time.process_time()
        self._before = cpu_seconds(self.folder) or 0.0 if trainer.global_step else 0.0
        _write(self.folder, trainer, "running", "", self._before)


def cpu_seconds(folder: Path) -> float | None:
    """The recorded `cpu_seconds` of the training in a folder; None if there is no record."""
    try:
        found = read_json(folder / FILE)["cpu_seconds"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(found) if isinstance(found, int | float) else None


def _write_end(folder: Path, trainer: Trainer, error: BaseException, cpu: float) -> None:
    if isinstance(error, KeyboardInterrupt | SystemExit):  # Lightning turns the first into the second
        reason = type(error).__name__ if isinstance(error, KeyboardInterrupt) else "interrupted"
        _write(folder, trainer, "stopped", reason, cpu)
        return
    said = " ".join(str(error).split())
    _write(folder, trainer, "failed", f"{type(error).__name__}: {said}"[:500], cpu)


def _write(folder: Path, trainer: Trainer, status: str, reason: str, cpu: float) -> None:
    if not trainer.is_global_zero:
        return
    content = {"status": status, "step": trainer.global_step, "max_steps": trainer.max_steps, "reason": reason}
    content["cpu_seconds"] = round(cpu, 2)
    content["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    atomic.write_json(folder / FILE, content)
