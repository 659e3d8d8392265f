"""A run that a scheduler stops exits as if finished, and the same command ends it as if nothing had happened."""

import os
import signal

from lightning.pytorch import Callback
from running import command, config_of, tiny, write_corpus
from test_train_and_sample import assert_identical, state_of

from flm.checkpoints.load import read_checkpoint
from flm.tasks.train import train


class Preempt(Callback):
    """What a scheduler does, once, in the middle of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_before_backward(self, trainer, *_):
        if trainer.global_step == self.step and not trainer.should_stop:
            os.kill(os.getpid(), signal.SIGTERM)


def test_preempted_and_started_again(monkeypatch, tmp_path, capfd):
    corpus = write_corpus(tmp_path / "corpus", documents=10)
    options = tiny(corpus, "trainer.max_steps=8", "model.dropout=0.1", "loader.batch_size=4", "loader.num_workers=1")
    options += ["callbacks.generation=null", "callbacks.sample=null", "trainer.val_check_interval=10", "logger=none"]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    preempt = "+callbacks.preempt={_target_: test_stop_and_resume.Preempt, step: 3}"
    assert command(monkeypatch, *options, preempt, f"hydra.run.dir={stopped}") == 0
    assert "stopped at step 4 (SIGTERM): the same command goes on from" in capfd.readouterr().out
    assert read_checkpoint(stopped / "checkpoints" / "last.ckpt").step == 4
    assert command(monkeypatch, *options, f"hydra.run.dir={stopped}") == 0
    train(config_of(whole, *options))
    assert_identical(state_of(stopped), state_of(whole))
