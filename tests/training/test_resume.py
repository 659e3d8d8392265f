import math
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from toy import ToyData, assert_identical, everything, make_module, make_trainer

from flm.checkpoints.load import read_checkpoint
from flm.training.checkpointing import CheckpointEvery
from flm.training.optimizers import MuonWithAdamW
from flm.training.schedules import cosine_decay

STEPS = 8


class Killed(Exception):
    pass


class KillAt(Callback):
    """Dies after the given number of micro-batches of this run."""

    def __init__(self, micro_batches):
        self.left = micro_batches

    def on_train_batch_end(self, trainer, *_):
        self.left -= 1
        if self.left == 0:
            raise Killed


class SaveAt(Callback):
    def __init__(self, micro_batch, path):
        self.micro_batch, self.path = micro_batch, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.micro_batch:
            trainer.save_checkpoint(self.path)


class Steps(DummyLogger):
    """The steps under which metrics were logged."""

    def __init__(self):
        super().__init__()
        self.train, self.val = [], []

    def log_metrics(self, metrics, step=None):
        if "train/loss_nats_per_token" in metrics:
            self.train.append((step, metrics["train/loss_nats_per_token"]))
        if "val/denoising_ce_nats_per_token" in metrics:
            self.val.append((step, metrics["val/denoising_ce_nats_per_token"]))


def fit(folder, accumulate, callbacks=(), ckpt_path=None, optimizer=None, steps=STEPS, **arguments):
    module, data, logger = make_module(optimizer), ToyData(), Steps()
    trainer = make_trainer(
        folder, steps, accumulate_grad_batches=accumulate, callbacks=list(callbacks), logger=logger, **arguments
    )
    try:
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    except Killed:
        pass
    return module, data, logger


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("optimizer", [None, MuonWithAdamW])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, accumulate, optimizer):
    whole, whole_data, whole_log = fit(tmp_path, accumulate, optimizer=optimizer)
    # files at steps 3 and 6; death one micro-batch before step 6 is complete, so two steps and a half are lost
    callbacks = [KillAt(6 * accumulate - 1), CheckpointEvery(tmp_path, 3)]
    killed, _, _ = fit(tmp_path, accumulate, callbacks, optimizer=optimizer)
    assert killed.trainer.global_step == (6 * accumulate - 1) // accumulate == 5
    resumed, data, log = fit(tmp_path, accumulate, ckpt_path=tmp_path / "last.ckpt", optimizer=optimizer)
    assert resumed.trainer.global_step == STEPS
    assert_identical(everything(resumed), everything(whole))
    # each batch once, in order, none skipped
    assert data.served == whole_data.served[3 * accumulate :] == list(range(3 * accumulate, STEPS * accumulate))
    # logged under the same steps with the same losses
    assert log.train == whole_log.train[-len(log.train) :] and len(log.train) == STEPS - 3


def test_a_file_written_within_an_accumulation_is_consistent(tmp_path):
    whole, _, _ = fit(tmp_path, 3)
    fit(tmp_path, 3, [SaveAt(7, tmp_path / "mid.ckpt"), KillAt(8)])  # step 2 is complete, two of three batches since
    resumed, data, _ = fit(tmp_path, 3, ckpt_path=tmp_path / "mid.ckpt")
    assert data.served[0] == 6
    assert_identical(everything(resumed), everything(whole))


def test_resuming_twice_does_not_lose_the_count(tmp_path):
    whole, _, _ = fit(tmp_path, 2)
    fit(tmp_path, 2, [CheckpointEvery(tmp_path, 2)], steps=2)
    fit(tmp_path, 2, [CheckpointEvery(tmp_path, 2)], ckpt_path=tmp_path / "last.ckpt", steps=5)
    assert (tmp_path / "step_0000005.ckpt").is_file()  # the end of a run is saved though 5 is no multiple of 2
    resumed, data, _ = fit(tmp_path, 2, ckpt_path=tmp_path / "last.ckpt")
    assert data.served == list(range(10, 16))
    assert_identical(everything(resumed), everything(whole))


class Rates(Callback):
    def __init__(self):
        self.seen = {}

    def on_train_batch_start(self, trainer, *_):
        self.seen[trainer.global_step] = trainer.optimizers[0].param_groups[0]["lr"]


@pytest.mark.parametrize("optimizer", [None, MuonWithAdamW])
def test_a_longer_run_goes_on_at_the_rate_of_its_own_schedule(tmp_path, optimizer):
    first, longer = Rates(), Rates()
    fit(tmp_path, 2, [CheckpointEvery(tmp_path, 20), first], optimizer=optimizer, steps=20)
    module = make_module(optimizer)
    module._make_scheduler = partial(cosine_decay, warmup_steps=2, total_steps=30)
    trainer = make_trainer(tmp_path, 24, accumulate_grad_batches=2, callbacks=[longer])
    trainer.fit(module, datamodule=ToyData(), ckpt_path=tmp_path / "last.ckpt")
    rate = first.seen[2]  # the whole rate

    def by_hand(step, total):
        return rate * min(1, (step + 1) / 2) * (1 + math.cos(math.pi * max(0, (step - 2) / (total - 2)))) / 2

    assert first.seen == pytest.approx({step: by_hand(step, 20) for step in range(20)})
    assert longer.seen == pytest.approx({step: by_hand(step, 30) for step in range(20, 24)})


def test_validation_keeps_its_rhythm(tmp_path):
    validating = dict(limit_val_batches=1.0, val_check_interval=4)
    _, _, whole = fit(tmp_path, 2, **validating)
    fit(tmp_path, 2, [CheckpointEvery(tmp_path, 3)], steps=3)
    _, _, resumed = fit(tmp_path, 2, ckpt_path=tmp_path / "last.ckpt", **validating)
    assert len(whole.val) == 4 and resumed.val == whole.val[1:]


def test_a_finished_run_stays_finished(tmp_path):
    done, _, _ = fit(tmp_path, 2, [CheckpointEvery(tmp_path, 3)])
    before = (tmp_path / "last.ckpt").stat().st_mtime_ns
    again, data, _ = fit(tmp_path, 2, [CheckpointEvery(tmp_path, 3)], ckpt_path=tmp_path / "last.ckpt")
    assert again.trainer.global_step == STEPS and data.served == []
    assert (tmp_path / "last.ckpt").stat().st_mtime_ns == before
    for name, weight in done.algorithm.state_dict().items():
        assert torch.equal(weight, again.algorithm.state_dict()[name])


def test_the_step_resumed_from_is_not_written_again(tmp_path):
    fit(tmp_path, 2, [CheckpointEvery(tmp_path, 4)], steps=4)
    written = []

    class Watch(CheckpointEvery):
        def _save(self, trainer):
            before = self.last_path
            super()._save(trainer)
            if self.last_path != before:
                written.append((self.last_path.name, trainer.fit_loop.epoch_loop.batch_progress.current.ready % 2))

    fit(tmp_path, 2, [Watch(tmp_path, 4)], ckpt_path=tmp_path / "last.ckpt")
    assert written == [("step_0000008.ckpt", 0)]


def test_keep_deletes_the_oldest(tmp_path):
    fit(tmp_path, 1, [CheckpointEvery(tmp_path, 2, keep=2)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "step_0000006.ckpt", "step_0000008.ckpt"]
    assert (tmp_path / "last.ckpt").samefile(tmp_path / "step_0000008.ckpt")


def test_resume_refuses_what_does_not_fit(tmp_path):
    fit(tmp_path, 1, [CheckpointEvery(tmp_path, 4)], steps=4)
    path = tmp_path / "last.ckpt"
    trainer = make_trainer(tmp_path, STEPS)
    other = make_module()
    other._tokenizer = {"kind": "other"}
    with pytest.raises(ValueError, match="last.ckpt: a checkpoint of another vocabulary.*kind"):
        trainer.fit(other, datamodule=ToyData(), ckpt_path=path)
    wider = make_module()
    wider.algorithm.backbone.out = torch.nn.Linear(8, 12)
    with pytest.raises(ValueError, match=r"backbone.out.weight has shape \(11, 8\), the model needs \(12, 8\)"):
        make_trainer(tmp_path, STEPS).fit(wider, datamodule=ToyData(), ckpt_path=path)


def test_a_rate_that_is_not_used_is_said_every_time(tmp_path, capsys):
    def resumed(lr, steps):
        module = make_module(lr=lr)
        module._config = {**module._config, "optim": {"lr": lr, "eps": 1e-8}}
        path = tmp_path / "last.ckpt"
        trainer = make_trainer(tmp_path, steps, callbacks=[CheckpointEvery(tmp_path, 2)])
        trainer.fit(module, datamodule=ToyData(), ckpt_path=path if path.exists() else None)
        return module.trainer.optimizers[0].param_groups[0]["initial_lr"], capsys.readouterr().out

    assert resumed(0.05, 2) == (0.05, "")
    assert resumed(0.05, 4) == (0.05, "")
    line = f"warning: optim.lr=0.05 of {tmp_path}/last.ckpt goes on; not used: optim.lr=0.01\n"
    assert resumed(0.01, 6) == (0.05, line)
    assert resumed(0.01, 8) == (0.05, line)  # the file of step 6 says what was used, not what was given
    assert read_checkpoint(tmp_path / "last.ckpt").config["optim"] == {"lr": 0.05, "eps": 1e-8}


def test_resume_without_an_average_to_continue(tmp_path):
    module = make_module(ema=None)
    make_trainer(tmp_path, 2, callbacks=[CheckpointEvery(tmp_path, 2)]).fit(module, datamodule=ToyData())
    with pytest.raises(ValueError, match="training.ema=null"):
        make_trainer(tmp_path, 4).fit(make_module(ema=0.9), datamodule=ToyData(), ckpt_path=tmp_path / "last.ckpt")
