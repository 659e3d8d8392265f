"""A run folder says how its run ended and after how many steps, and the report says the same."""

import json
import os
import signal
import time

import lightning
import pytest
from running import config_of, tiny, write_corpus

from flm.report.files import read_results
from flm.report.kinds.training import Training
from flm.tasks.train import train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("status") / "corpus")


class At(lightning.Callback):
    """Does something after a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            self.action()


def run(folder, corpus, monkeypatch=None, action=None, *overrides):
    """The status file, and what the report reads."""
    if action is not None:
        monkeypatch.setattr("flm.tasks.train._callbacks", with_callback(At(5, action)))
    config = config_of(folder, *tiny(corpus, "logger=csv", "callbacks.sample=null", *overrides))
    error = None
    try:
        train(config)
    except Exception as raised:
        error = raised
    (training,) = read_results([folder]).of(Training)
    return json.loads((folder / "status.json").read_text()), training, error


def with_callback(callback):
    from flm.tasks import train as module

    made = module._callbacks
    return lambda *arguments: [*made(*arguments), callback]


def test_a_finished_run_has_done_its_steps(tmp_path, corpus):
    """Twenty, also where samples were logged after the last: not twenty-one."""
    status, training, error = run(tmp_path, corpus)
    assert error is None and (status["status"], status["step"], status["max_steps"]) == ("finished", 20, 20)
    assert (training.status.word, training.status.step, training.status.reason) == ("finished", 20, "")
    assert training.metrics.steps == 20 and any(name.startswith("gen/") for name in training.metrics.series)
    (tmp_path / "status.json").unlink()  # of a run before there was one
    (training,) = read_results([tmp_path]).of(Training)
    assert (training.status.word, training.status.step) == ("finished", 20)


def test_a_failed_run_says_at_which_step_and_why(tmp_path, corpus, monkeypatch):
    def fail():
        raise RuntimeError("the disk\nis gone")

    status, training, error = run(tmp_path, corpus, monkeypatch, fail)
    assert isinstance(error, RuntimeError)
    assert (status["status"], status["step"], status["reason"]) == ("failed", 5, "RuntimeError: the disk is gone")
    assert (training.status.word, training.status.step) == ("failed", 5)


def test_a_stopped_run_says_what_stopped_it(tmp_path, corpus, monkeypatch):
    status, training, error = run(tmp_path, corpus, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert error is None and status["status"] == "stopped" and 5 <= status["step"] < 20
    assert training.status.reason == "SIGTERM" and training.status.step == status["step"]
    monkeypatch.undo()
    begin = time.process_time()
    after, _, _ = run(tmp_path, corpus)  # goes on, and its processor time comes on top
    spent = time.process_time() - begin
    assert after["status"] == "finished" and status["cpu_seconds"] > 0
    assert 0 < after["cpu_seconds"] - status["cpu_seconds"] <= spent


def test_collapsed_generation_is_a_reason(tmp_path, corpus):
    status, _, error = run(tmp_path, corpus, None, None, "callbacks.generation.min_entropy_nats=100")
    assert error is None and (status["status"], status["step"]) == ("stopped", 10)
    assert status["reason"] == "generation has collapsed"
