"""How a run stands, in a file of its folder: running, finished, stopped or failed, at which step, and why."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lightning.pytorch import Trainer

from flm import atomic

FILE = "status.json"


@contextmanager
def recorded(folder: Path, trainer: Trainer) -> Iterator[None]:
    """Keeps <folder>/status.json while the trainer fits within. A killed process leaves "running" behind.

    `step` is the number of optimiser steps done, `max_steps` that of those wanted (-1: no limit). `reason` is what a callback
    that ended the run has in its attribute `reason`, or the error in a line.
    """
    _write(folder, trainer, "running")
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning turns the first into the second
        _write(folder, trainer, "stopped", type(error).__name__ if isinstance(error, KeyboardInterrupt) else "interrupted")
        raise
    except BaseException as error:
        said = " ".join(str(error).split())
        _write(folder, trainer, "failed", f"{type(error).__name__}: {said}"[:500])
        raise
    reasons = [reason for callback in trainer.callbacks if (reason := getattr(callback, "reason", None)) is not None]
    done = trainer.global_step >= trainer.max_steps if trainer.max_steps > 0 else not reasons
    _write(folder, trainer, "finished" if done else "stopped", "" if done else "; ".join(map(str, reasons)))


def _write(folder: Path, trainer: Trainer, status: str, reason: str = "") -> None:
    if not trainer.is_global_zero:
        return
    content = {"status": status, "step": trainer.global_step, "max_steps": trainer.max_steps, "reason": reason}
    content["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    atomic.write_text(folder / FILE, json.dumps(content, indent=2) + "\n")
