import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from toy import ToyData, make_module

import flm.tasks  # noqa: F401  resolvers of the configs
from flm.schema import check
from flm.training.checkpointing import CheckpointEvery
from flm.training.generation import SampleEvery

CONFIGS = Path(__file__).parents[2] / "configs"


def composed(tmp_path, *overrides):
    """The groups of this layer under a primary config of our own."""
    groups = dict(optim="adamw", lr_scheduler="constant_warmup", callbacks="default", logger="csv", trainer="default")
    primary = {
        "defaults": [*({k: v} for k, v in groups.items()), {"strategy": "auto"}, "_self_"],
        "run_dir": str(tmp_path / "run"),
        "wandb": {"project": "p", "name": "n"},
        "hydra": {"searchpath": [f"file://{CONFIGS}"]},
    }
    folder = tmp_path / "primary"
    folder.mkdir(exist_ok=True)
    OmegaConf.save(primary, folder / "config.yaml")
    with initialize_config_dir(str(folder), version_base=None):
        return compose("config", list(overrides))


@pytest.mark.parametrize("optim", sorted(p.stem for p in (CONFIGS / "optim").iterdir()))
@pytest.mark.parametrize("schedule", sorted({p.stem for p in (CONFIGS / "lr_scheduler").iterdir()} - {"none"}))
def test_every_optimiser_takes_every_schedule(tmp_path, optim, schedule):
    config = composed(tmp_path, f"optim={optim}", f"lr_scheduler={schedule}", "trainer.max_steps=5000", "optim.lr=0.5")
    module = make_module(instantiate(config.optim))
    module._make_scheduler = instantiate(config.lr_scheduler)
    made = module.configure_optimizers()
    assert made["optimizer"].param_groups[0]["lr"] == pytest.approx(0.5 / 2500)
    made["lr_scheduler"]["scheduler"].step(4000)
    factors = {"constant_warmup": 1.0, "linear_warmdown": 0.4, "cosine_decay": (1 + math.cos(0.6 * math.pi)) / 2}
    assert made["optimizer"].param_groups[0]["lr"] == pytest.approx(0.5 * factors[schedule])


def test_the_defaults_run_and_say_what_they_write(tmp_path):
    overrides = ["trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.accelerator=cpu", "trainer.devices=1"]
    every = "callbacks.checkpoint_every_n_steps.every_n_train_steps=2"
    config = composed(tmp_path, *overrides, every, "callbacks.sample.steps=1", "trainer.log_every_n_steps=1")
    given = {"sample": {"decode": lambda tokens: ["text"] * len(tokens)}, "generation": {"reference": [[0, 1, 2]] * 4}}
    nodes = {name: instantiate(node) for name, node in config.callbacks.items() if node is not None}
    callbacks = [c(**given[name]) if isinstance(c, partial) else c for name, c in nodes.items()]
    trainer = instantiate(config.trainer, _partial_=True, _target_="lightning.pytorch.Trainer")(
        callbacks=callbacks, logger=instantiate(config.logger), strategy=config.strategy
    )
    trainer.fit(make_module(), datamodule=ToyData())
    run = tmp_path / "run"
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"last.ckpt", "step_0000002.ckpt", "step_0000004.ckpt"}
    assert {p.name for p in (run / "samples").iterdir()} == {"step_0000002.txt", "step_0000004.txt"}
    header = (run / "metrics/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/denoising_ce_nats_per_token", "perf/tokens_per_second", "lr-AdamW"} <= set(header)


def test_null_and_none_switch_off(tmp_path):
    config = composed(tmp_path, "logger=none", "callbacks.sample=null")
    assert config.logger is None and config.callbacks.sample is None
    assert config.strategy == "auto"
    assert instantiate(composed(tmp_path, "strategy=ddp").strategy)._ddp_kwargs["find_unused_parameters"] is False


def test_wandb_is_offline_when_told_so(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "run").mkdir()
    logger = instantiate(composed(tmp_path, "logger=wandb").logger)
    assert logger._wandb_init["project"] == "p" and logger.name == "p" and logger._wandb_init["name"] == "n"
    assert logger.save_dir == str(tmp_path / "run")


def test_tensorboard_writes_into_the_run(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "run").mkdir()
    logger = instantiate(composed(tmp_path, "logger=tensorboard").logger)
    for step in (1, 5):
        logger.log_metrics({"train/loss": 1 / step}, step)
    logger.finalize("success")
    (folder,) = (tmp_path / "run" / "tensorboard").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (5, pytest.approx(0.2))]


def test_trackio_keeps_numbers_and_goes_on_with_a_run(tmp_path):
    """In a process of its own: trackio reads its folder once, when it is imported."""
    pytest.importorskip("trackio")
    script = """
import sys
from flm.training.trackio_logger import TrackioLogger
logger = TrackioLogger("p", "n")
logger.log_hyperparams({"lr": 0.5})
logger.log_metrics({"train/loss": 1 / int(sys.argv[1])}, int(sys.argv[1]))
logger.finalize("success")
from trackio.sqlite_storage import SQLiteStorage
print([(row["step"], row["train/loss"]) for row in SQLiteStorage.get_logs("p", "n")])
"""
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    for step in (1, 4):
        command = [sys.executable, "-c", script, str(step)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    assert "[(1, 1.0), (4, 0.25)]" in done.stdout


def test_bad_numbers_name_their_key(tmp_path):
    for kind, argument in ((CheckpointEvery, "every_n_train_steps"), (SampleEvery, "steps")):
        with pytest.raises(
            ValueError, match=f"callbacks.x.{argument} must be a whole number of at least 1( and at most [0-9]+)?, not 0"
        ):
            check(kind, {argument: 0}, "callbacks.x", is_partial=True)
