"""best_validation.ckpt is of the step with the lowest validation loss, over interruptions too."""

import json
from types import SimpleNamespace

import pytest
from lightning.pytorch import Callback
from toy import ToyData, make_module, make_trainer

from flm.checkpoints.load import read_checkpoint
from flm.training.checkpointing import CheckpointEvery
from flm.training.generation import GenerationMonitor, SampleEvery


class Scripted(Callback):
    """Replaces each validation's result; checkpoint callbacks come after all others."""

    def __init__(self, losses):
        self.losses = losses

    def on_validation_end(self, trainer, pl_module):
        pl_module.report = SimpleNamespace(mean=self.losses[trainer.global_step], measure="nats")


def fit(folder, losses, steps, path=None, keep_best=True):
    callbacks = [Scripted(losses), CheckpointEvery(folder, 1, keep_best=keep_best)]
    trainer = make_trainer(folder, steps, callbacks=callbacks, limit_val_batches=1, val_check_interval=1)
    trainer.fit(make_module(), datamodule=ToyData(), ckpt_path=path)


def best(folder):
    record = json.loads((folder / "best_validation.json").read_text())
    assert read_checkpoint(folder / "best_validation.ckpt").step == record["step"]
    return record["step"], record["loss_per_token"]


def test_the_lowest_is_kept(tmp_path):
    losses = {1: 5.0, 2: 3.0, 3: 4.0, 4: 2.0, 5: 2.5, 6: 1.0}
    fit(tmp_path, losses, 3)
    assert best(tmp_path) == (2, 3.0)
    # resumed from a file written before its own validation: that the second was the best is known all the same
    fit(tmp_path, losses | {4: 3.5}, 5, tmp_path / "step_0000003.ckpt")
    assert best(tmp_path) == (5, 2.5)
    fit(tmp_path, losses, 6, tmp_path / "step_0000005.ckpt")
    assert best(tmp_path) == (6, 1.0)


def test_a_run_from_the_start_knows_no_earlier_best(tmp_path):
    fit(tmp_path, {1: 1.0}, 1)
    fit(tmp_path, {1: 2.0}, 1)
    assert best(tmp_path) == (1, 2.0)


def test_it_is_kept_when_asked_for_alone(tmp_path):
    fit(tmp_path, {1: 1.0}, 1, keep_best=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "step_0000001.ckpt"]


class Strict:
    """An algorithm's `sampler` that takes one option."""

    def __call__(self, temperature=1.0):
        return None


@pytest.mark.parametrize("name", ["sample", "generation"])
def test_options_are_checked_before_the_first_step(tmp_path, name):
    options = {"temprature": 2.0}
    callback = (
        SampleEvery(lambda tokens: [], tmp_path, options=options)
        if name == "sample"
        else GenerationMonitor([[0, 1]], tmp_path, options=options)
    )
    module = make_module()
    module.algorithm.sampler = Strict()
    trainer = make_trainer(tmp_path, 2, callbacks=[callback])
    with pytest.raises(ValueError, match=f"callbacks.{name}.options: .*temprature"):
        trainer.fit(module, datamodule=ToyData())
    assert trainer.global_step == 0
