"""Ending a run early with a checkpoint: after a signal, as schedulers send, or when its time is up."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer

from flm.ranges import Positive, Where

OUT_OF_TIME = 1 << 10  # no signal has this number


def seconds_of(max_time: str | float) -> float:
    """Seconds of "DD:HH:MM:SS", whose first parts may be missing, or of a number of seconds."""
    try:
        total = 0.0
        for part, size in zip(reversed(str(max_time).split(":")), (1, 60, 3600, 86400), strict=False):
            total += float(part) * size
        if str(max_time).count(":") <= 3 and 0 < total < float("inf"):
            return total
    except ValueError:
        pass
    raise ValueError(f"trainer.max_time={max_time} must be DD:HH:MM:SS, as 00:05:30:00, or a number of seconds above 0")


def _is_time(text: str) -> bool:
    try:
        return seconds_of(text) > 0
    except ValueError:
        return False


MaxTime = Positive | Annotated[str, Where(_is_time, "DD:HH:MM:SS, as 00:05:30:00")]
SignalName = Annotated[
    str, Where(lambda name: name in signal.Signals.__members__ and name not in ("SIGKILL", "SIGSTOP"), "a signal, as SIGTERM")
]


class StopInTime(Callback):
    """Ends the run with a checkpoint and without a last validation; the same command resumes it.

    After a signal the run ends with the current optimiser step; with several processes one step later, since these agree on
    the step in an exchange that runs beside the computation.

    Args:
        max_time: of this process, from the construction of this callback: "DD:HH:MM:SS" or seconds; None: no limit.
        signals: names of the signals that end the run. A second SIGINT (Ctrl-C) quits at once, without a checkpoint. SLURM
            sends SIGTERM before it takes the machine away, and with --signal=USR1@120 SIGUSR1 two minutes before the end.

    Attributes:
        reason: why the run was ended; None: it was not.
    """

    def __init__(self, max_time: MaxTime | None = None, signals: Sequence[SignalName] = ("SIGINT", "SIGTERM", "SIGUSR1")):
        self._signals = [signal.Signals[name] for name in signals]
        self._deadline = None if max_time is None else time.monotonic() + seconds_of(max_time)
        self.reason: str | None = None
        self._wanted, self._seen_step, self._interrupted = 0, 0, False
        self._group: Any = None
        self._exchange: tuple[torch.distributed.Work, torch.Tensor] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._wanted, self._seen_step, self.reason, self._interrupted = 0, trainer.global_step, None, False
        if trainer.world_size > 1 and self._group is None:
            # a group on the CPU, so that the exchange does not wait for a device
            self._group = torch.distributed.new_group(backend="gloo", timeout=timedelta(hours=6))
        if threading.current_thread() is threading.main_thread():  # only this thread can set handlers
            for number in self._signals:
                # replaces the trainer's handler, which would end the run without a checkpoint; the trainer restores the
                # handlers from before when it is done
                signal.signal(number, self._note)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self._seen_step:  # within an accumulation
            return
        self._seen_step = trainer.global_step
        if self._wanted == 0 and self._deadline is not None and time.monotonic() >= self._deadline:
            self._wanted = OUT_OF_TIME
        agreed = self._agree(self._wanted) if self._group is not None else self._wanted
        if agreed:
            self.reason = "its time is up" if agreed == OUT_OF_TIME else signal.Signals(agreed).name
            trainer.should_stop = True  # checkpoint callbacks, called after this one, read it
            trainer.limit_val_batches = 0  # there may be no time for a validation

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._exchange is not None:
            self._exchange[0].wait()
            self._exchange = None
        if self.reason is not None and trainer.is_global_zero:
            path = getattr(trainer.checkpoint_callback, "last_path", None)
            rest = f"the same command goes on from {path}" if path else "nothing was saved, no callback writes checkpoints"
            print(f"stopped at step {trainer.global_step} ({self.reason}): {rest}", flush=True)

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            # not print, which the signal may have interrupted
            os.write(2, b"\nstopping after this step, with a checkpoint; Ctrl-C again quits at once\n")
        self._wanted = number

    def _agree(self, wanted: int) -> int:
        """The largest `wanted` of all processes one step ago, which arrives while the next step is computed."""
        if self._exchange is not None:
            work, answer = self._exchange
            work.wait()
            self._exchange = None
            if answer.item():
                return int(answer.item())
        answer = torch.tensor([wanted])
        work = torch.distributed.all_reduce(answer, torch.distributed.ReduceOp.MAX, self._group, async_op=True)
        self._exchange = (work, answer)
        return 0
