"""Several runs of one command, and one batch again and again."""

import csv
import math

import pytest
from tasks.running import command, config_of, tiny, write_corpus

from flm.checkpoints.load import read_checkpoint
from flm.tasks.train import train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


QUICK = [
    "trainer.max_steps=2",
    "logger=none",
    "callbacks.sample=null",
    "callbacks.generation=null",
    "lr_scheduler.warmup_steps=1",
]


def test_a_sweep_of_two_leaves_two_runs(corpus, tmp_path, monkeypatch):
    # the flag stands where a script that has overrides of its own leaves it
    sweep = [*tiny(corpus, *QUICK), "--multirun", "optim.lr=1e-3,2e-3", f"hydra.sweep.dir={tmp_path}"]
    assert command(monkeypatch, *sweep) == 0
    rates = [read_checkpoint(tmp_path / str(job) / "checkpoints" / "last.ckpt").config["optim"]["lr"] for job in (0, 1)]
    assert rates == [1e-3, 2e-3]


def test_a_sweep_ends_at_its_first_error_and_says_which(corpus, tmp_path, monkeypatch, capsys):
    sweep = ["--multirun", *tiny(corpus, *QUICK), "training.ema=2,0.9", f"hydra.sweep.dir={tmp_path}"]
    assert command(monkeypatch, *sweep) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: training.ema must be a number in (0, 1), or null, not 2")


def test_submitit_composes(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="hydra-submitit-launcher is not installed")
    from hydra import compose, initialize_config_dir

    from flm.tasks.command_line import CONFIGS

    overrides = ["hydra/launcher=submitit_slurm", "hydra.launcher.nodes=2", "hydra.launcher.gpus_per_node=8"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        launcher = compose("config", overrides, return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith(".SlurmLauncher") and (launcher.nodes, launcher.gpus_per_node) == (2, 8)


def test_one_batch_is_learned_by_heart(corpus, tmp_path):
    """Down to ln 8 / 16 nats per token: which of 8 sequences of 16 it is, and then nothing. More batches would leave 0.5."""
    options = ["debug=overfit", "algo=ar", "data=text", f"data.path={corpus}", "tokenizer=characters", "optim.lr=3e-3"]
    options += ["model.length=16", "model.hidden_size=64", "model.num_blocks=2", "model.num_heads=2", "trainer.max_steps=120"]
    train(config_of(tmp_path, *options, "callbacks.progress=null"))
    with open(tmp_path / "metrics" / "version_0" / "metrics.csv", newline="") as file:
        logged = [row["train/loss_nats_per_token"] for row in csv.DictReader(file)]
    assert float([value for value in logged if value][-1]) < 1.15 * math.log(8) / 16
