"""How a run stands, in a file of its folder: running, finished, stopped or failed, at which step, and why."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from flm import atomic

FILE = "status.json"


@contextmanager
def recorded(folder: Path, trainer: Trainer) -> Iterator[None]:
    """Keeps <folder>/status.json while the trainer fits within. A killed process leaves "running" behind, and a start that is
    refused before its first step nothing.

    `step` is the number of optimiser steps done, `max_steps` that of those wanted (-1: no limit). `reason` is what a callback
    that ended the run has in its attribute `reason`, or the error in a line.
    """
    begun = _Begun(folder)
    trainer.callbacks.append(begun)
    try:
        yield
    except BaseException as error:
        if begun.has:
            _write_end(folder, trainer, error)
        raise
    if not begun.has:
        return
    reasons = [reason for callback in trainer.callbacks if (reason := getattr(callback, "reason", None)) is not None]
    done = trainer.global_step >= trainer.max_steps if trainer.max_steps > 0 else not reasons
    _write(folder, trainer, "finished" if done else "stopped", "" if done else "; ".join(map(str, reasons)))


class _Begun(Callback):
    def __init__(self, folder: Path):
        self.folder, self.has = folder, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has = True
        _write(self.folder, trainer, "running")


def _write_end(folder: Path, trainer: Trainer, error: BaseException) -> None:
    if isinstance(error, KeyboardInterrupt | SystemExit):  # Lightning turns the first into the second
        _write(folder, trainer, "stopped", type(error).__name__ if isinstance(error, KeyboardInterrupt) else "interrupted")
        return
    said = " ".join(str(error).split())
    _write(folder, trainer, "failed", f"{type(error).__name__}: {said}"[:500])


def _write(folder: Path, trainer: Trainer, status: str, reason: str = "") -> None:
    if not trainer.is_global_zero:
        return
    content = {"status": status, "step": trainer.global_step, "max_steps": trainer.max_steps, "reason": reason}
    content["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    atomic.write_text(folder / FILE, json.dumps(content, indent=2) + "\n")
