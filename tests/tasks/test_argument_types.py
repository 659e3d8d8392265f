"""Text where a number belongs, a GPU that is not there, another optimiser: one line each, before anything is done."""

import pytest
import torch
from running import command, config_of, tiny, write_corpus

from flm.checkpoints import restricted
from flm.tasks.assemble import new_algorithm
from flm.tasks.machine import device_of
from flm.tasks.train import train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents=10)


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(config_of(folder, *tiny(corpus, "trainer.max_steps=2", "logger=none")))
    return folder


@pytest.mark.parametrize(
    "override,key",
    [
        ("optim.lr=abc", "optim.lr must be"),
        ("model.length=abc", "model.length must be a whole number of at least 1, not abc"),
        ("model.hidden_size=wide", "model.hidden_size must be a whole number of at least 1 and at most 65536, not wide"),
        ("loader.global_batch_size=big", "loader.global_batch_size must be"),
        ("lr_scheduler.warmup_steps=abc", "lr_scheduler.warmup_steps must be"),
        ("trainer.max_steps=1e6x", "trainer.max_steps must be"),
        ("training.ema=on_", "training.ema must be"),
        ("data.valid_fraction=some", "data.valid_fraction must be"),
        ("callbacks.sample.count=many", "callbacks.sample.count must be"),
        ("seed=one", "seed must be"),
    ],
)
def test_text_for_a_number(monkeypatch, capfd, tmp_path, corpus, override, key):
    assert command(monkeypatch, *tiny(corpus), override, f"hydra.run.dir={tmp_path / 'run'}") == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].startswith(f"error: {key}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("mode", ["train", "sample_eval"])
def test_a_gpu_that_is_not_there(monkeypatch, capfd, tmp_path, corpus, run, mode):
    overrides = [f"mode={mode}", f"hydra.run.dir={tmp_path / 'run'}", "trainer.accelerator=gpu"]
    if mode == "sample_eval":
        overrides.append(f"eval.checkpoint_path={run / 'checkpoints' / 'last.ckpt'}")
    assert command(monkeypatch, *tiny(corpus), *overrides) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "trainer.accelerator=gpu" in lines[0]
    assert device_of("auto").type == "cpu"


def test_another_optimiser_is_refused(monkeypatch, capfd, tmp_path, corpus, run):
    before = {path: path.stat().st_mtime_ns for path in (run / "checkpoints").iterdir()}
    arguments = tiny(corpus, "trainer.max_steps=5", "logger=none", "optim=muon", f"hydra.run.dir={run}")
    assert command(monkeypatch, *arguments) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "last.ckpt: of a run with another optimiser (AdamW" in lines[0] and "MuonWithAdamW" in lines[0]
    assert {path: path.stat().st_mtime_ns for path in (run / "checkpoints").iterdir()} == before


def test_a_teacher_is_read_once(monkeypatch, tmp_path, corpus, run):
    read = []
    original = restricted.read

    def counting(path, noted):
        read.append(path)
        return original(path, noted)

    monkeypatch.setattr(restricted, "read", counting)
    path = run / "checkpoints" / "last.ckpt"
    config = config_of(tmp_path, *tiny(corpus), "algo=fmlm", f"algo.teacher_path={path}")
    content = torch.load(path, weights_only=True)
    algorithm = new_algorithm(config, content["flm"]["vocab_size"])
    assert len(read) == 1
    # and is the average of its weights
    teacher = algorithm.teacher("teacher").state_dict()["backbone.input_table"]
    assert torch.equal(teacher, content["flm"]["average"]["backbone.input_table"])
    assert not torch.equal(teacher, content["state_dict"]["algorithm.backbone.input_table"])
