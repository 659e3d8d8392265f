"""Runs that are ended early leave a file from which they end as if nothing had happened."""

import itertools
import os
import signal
import time

import pytest
import torch
from lightning.pytorch import Callback
from toy import ToyData, assert_identical, everything, make_module, make_trainer

from flm.data.loaders import ignore_stop_signals
from flm.schema import check
from flm.training.checkpointing import CheckpointEvery
from flm.training.stopping import StopInTime, seconds_of

STEPS = 6


class SignalAt(Callback):
    """Sends this process a signal in the middle of a micro-batch."""

    def __init__(self, micro_batch, number):
        self.micro_batch, self.number = micro_batch, number

    def on_before_backward(self, trainer, *_):
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready == self.micro_batch + 1:
            os.kill(os.getpid(), self.number)


def fit(folder, *callbacks, path=None, **arguments):
    module = make_module()
    options = dict(accumulate_grad_batches=2, limit_val_batches=1.0, val_check_interval=4) | arguments
    make_trainer(folder, STEPS, callbacks=list(callbacks), **options).fit(module, datamodule=ToyData(), ckpt_path=path)
    return module


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("micro_batch", [4, 5])
def test_a_signal_saves_the_next_step_and_the_run_goes_on_from_it(tmp_path, capsys, number, micro_batch):
    before = signal.getsignal(number)
    whole = everything(fit(tmp_path / "whole"))
    callbacks = [SignalAt(micro_batch, number), StopInTime(), CheckpointEvery(tmp_path, 1000)]
    stopped = fit(tmp_path, *callbacks)
    assert stopped.trainer.global_step == 3 and callbacks[1].reason == signal.Signals(number).name
    # the validation after step 4 was not reached, and the one a trainer makes on stopping was left out
    assert [f.name for f in tmp_path.glob("step_*")] == ["step_0000003.ckpt"]
    printed = capsys.readouterr().out
    assert f"stopped at step 3 ({signal.Signals(number).name}): the same command goes on from" in printed
    assert "step_0000003.ckpt" in printed
    assert signal.getsignal(number) == before
    assert_identical(everything(fit(tmp_path, StopInTime(), path=tmp_path / "last.ckpt")), whole)


def test_no_time_is_lost_on_validation(tmp_path):
    validations = []

    class Watch(Callback):
        def on_validation_start(self, trainer, pl_module):
            validations.append(trainer.global_step)

    fit(tmp_path, SignalAt(3, signal.SIGTERM), StopInTime(), Watch())
    assert validations == []


def test_the_time_is_of_the_process_and_not_of_the_run(tmp_path):
    stop = StopInTime(max_time=0.01)
    time.sleep(0.02)
    callbacks = [stop, CheckpointEvery(tmp_path, 1000)]
    assert fit(tmp_path, *callbacks).trainer.global_step == 1
    assert stop.reason == "its time is up"
    again = StopInTime(max_time="00:01:00:00")
    assert fit(tmp_path, again, path=tmp_path / "last.ckpt").trainer.global_step == STEPS
    assert again.reason is None


def test_it_says_when_nothing_was_saved(tmp_path, capsys):
    fit(tmp_path, SignalAt(0, signal.SIGTERM), StopInTime())
    assert "nothing was saved" in capsys.readouterr().out


def test_only_the_signals_named_are_taken(tmp_path):
    taken = []
    before = signal.signal(signal.SIGUSR1, lambda *_: taken.append(1))
    try:
        done = fit(tmp_path, SignalAt(0, signal.SIGUSR1), StopInTime(signals=["SIGTERM"]))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert done.trainer.global_step == STEPS and taken == [1]


def test_workers_of_the_loader_outlive_a_signal_to_the_whole_job(tmp_path):
    class Deadly(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR1)
            return index

    loader = torch.utils.data.DataLoader(Deadly(), batch_size=None, num_workers=1, worker_init_fn=ignore_stop_signals)
    assert list(loader) == [0, 1, 2]


@pytest.mark.parametrize(
    "text,seconds", [("00:05:30:00", 19800), ("01:00:00:00", 86400), ("05:30", 330), (90, 90), ("1.5", 1.5)]
)
def test_times(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["soon", "1:2:3:4:5", "0", -3, "inf", "nan", ""])
def test_times_that_are_none(text):
    with pytest.raises(ValueError, match="trainer.max_time=.*DD:HH:MM:SS"):
        seconds_of(text)


def test_an_unknown_signal_is_named():
    with pytest.raises(ValueError, match=r"callbacks.stop.signals must be .*not \['SIGUSER'\]"):
        check(StopInTime, {"signals": ["SIGUSER"]}, "callbacks.stop")


ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.mark.parametrize("order", list(itertools.permutations(ALL)), ids=lambda o: "-".join(n.name[3:] for n in o))
def test_all_signals_in_any_order_leave_a_run_that_goes_on(tmp_path, order):
    """In one step, one after the other."""
    before = [signal.getsignal(number) for number in ALL]
    whole = everything(fit(tmp_path / "whole"))
    sent = [SignalAt(micro_batch, number) for micro_batch, number in zip((3, 4, 4), order, strict=True)]
    assert fit(tmp_path, *sent, StopInTime(), CheckpointEvery(tmp_path, 1000)).trainer.global_step in (2, 3)
    assert [signal.getsignal(number) for number in ALL] == before
    assert_identical(everything(fit(tmp_path, StopInTime(), path=tmp_path / "last.ckpt")), whole)


def test_the_first_ctrl_c_saves_and_says_how_to_go_on(tmp_path, capfd):
    fit(tmp_path, SignalAt(4, signal.SIGINT), StopInTime(), CheckpointEvery(tmp_path, 1000))
    printed = capfd.readouterr()
    assert "Ctrl-C again quits at once" in printed.err
    assert "stopped at step 3 (SIGINT): the same command goes on from" in printed.out


def test_a_second_ctrl_c_quits_and_leaves_the_last_file_whole(tmp_path):
    class Twice(Callback):
        def on_before_backward(self, trainer, *_):
            if trainer.global_step == 4:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            fit(tmp_path, Twice(), StopInTime(), CheckpointEvery(tmp_path, 2))
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores it from then on, to take leave in peace
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["last.ckpt", "step_0000002.ckpt", "step_0000004.ckpt"]
    whole = everything(fit(tmp_path / "whole"))
    assert_identical(everything(fit(tmp_path, StopInTime(), path=tmp_path / "last.ckpt")), whole)
