"""The main job through the command line: train, resume, sample from nothing but the checkpoint."""

import json

import pytest
import torch
from running import command, config_of, tiny, write_corpus

from flm.checkpoints.load import read_checkpoint
from flm.tasks.train import train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    metrics = train(config_of(folder, *tiny(corpus, "trainer.max_steps=60")))
    return folder, metrics


def test_a_run_leaves_what_it_should_under_its_folder(trained, corpus):
    folder, metrics = trained
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"run.json", "checkpoints/last.ckpt", "checkpoints/step_0000060.ckpt"} <= found
    assert {"samples/step_0000060.txt", "metrics/version_0/metrics.csv"} <= found
    assert {path.name for path in corpus.iterdir()} == {f"{i:03d}.txt" for i in range(60)}  # nothing beside the data
    assert 0 < metrics["val/denoising_ce_nats_per_token"] < 3.4
    assert 0 < metrics["val/context_free_ce_nats_per_token"] < 3.4


def read_texts(folder, steps):
    return [json.loads(line)["text"] for line in (folder / f"samples-{steps}.jsonl").read_text().splitlines()]


def test_sampling_needs_only_the_checkpoint_and_keeps_given_text(trained, tmp_path, monkeypatch):
    checkpoint = trained[0] / "checkpoints" / "last.ckpt"
    common = ["mode=sample_eval", f"eval.checkpoint_path={checkpoint}", "loader.eval_batch_size=3", "trainer.accelerator=cpu"]
    run = [*common, "sampling.steps=[1,16]", "sampling.prompt=the cat ", "sampling.suffix=.", f"hydra.run.dir={tmp_path}"]
    assert command(monkeypatch, *run) == 0
    for steps in (1, 16):
        texts = read_texts(tmp_path, steps)
        assert len(texts) == 3
        assert all(text.startswith("the cat ") and text.endswith(".") and len(text) == 32 for text in texts)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["checkpoint"]["sha256"] == read_checkpoint(checkpoint).sha256
    assert results["generated"]["16"]["count"] == 3 and results["seed"] == 1

    infill = [*common, "sampling.steps=4", "sampling.infill=the [3] sees [2].", f"hydra.run.dir={tmp_path / 'infill'}"]
    assert command(monkeypatch, *infill) == 0
    for text in read_texts(tmp_path / "infill", 4):
        assert "<unk>" in text or (text[:4], text[7:13], text[15:]) == ("the ", " sees ", ".")


def test_sampling_repeats_itself_and_follows_the_seed(trained, tmp_path, monkeypatch):
    checkpoint = trained[0] / "checkpoints" / "last.ckpt"
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run = ["mode=sample_eval", f"eval.checkpoint_path={checkpoint}", "loader.eval_batch_size=2", f"seed={seed}"]
        assert command(monkeypatch, *run, "sampling.steps=3", f"hydra.run.dir={tmp_path / name}") == 0
        texts.append(read_texts(tmp_path / name, 3))
    assert texts[0] == texts[1] != texts[2]


def state_of(folder):
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return content["state_dict"], content["flm"]["average"], content["optimizer_states"]


def assert_identical(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_identical(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            assert_identical(x, y)
    else:
        assert a == b


def test_a_run_that_resumes_ends_bit_identical(corpus, tmp_path):
    """Through the real data module, with accumulation and dropout."""
    options = tiny(corpus, "loader.batch_size=4", "model.dropout=0.1")
    options += ["callbacks.checkpoint_every_n_steps.every_n_train_steps=7"]
    schedule = "lr_scheduler.warmup_steps=3"
    train(config_of(tmp_path / "whole", *options, schedule))
    train(config_of(tmp_path / "parts", *options, schedule, "trainer.max_steps=9"))
    train(config_of(tmp_path / "parts", *options, schedule))
    assert_identical(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))


@pytest.fixture(scope="module")
def first_stage(corpus, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    teacher = f"algo.teacher_path={trained[0]}/checkpoints/last.ckpt"
    train(config_of(folder, *tiny(corpus, "algo=flm_distill", teacher, "trainer.max_steps=3")))
    return folder


@pytest.mark.parametrize(
    "algo",
    ["flm evidence", "fmlm", "fmlm evidence", "fmlm lagrangian", "fmlm eulerian", "flm_distill", "flm_distill_second", "ar"],
)
def test_every_algorithm_resumes_bit_identical_and_samples_alone(algo, corpus, trained, first_stage, tmp_path, monkeypatch):
    name, *objective = algo.split()
    teacher = f"{trained[0]}/checkpoints/last.ckpt"
    options = tiny(corpus, f"algo={name}", "model.dropout=0.1", "callbacks.sample=null", "lr_scheduler.warmup_steps=2")
    options += ["callbacks.checkpoint_every_n_steps.every_n_train_steps=2", "logger=none"]
    if "evidence" in objective:
        options += ["algo.reads=evidence", "model.neighbours=2"]
    else:
        options += [f"algo.objective={value}" for value in objective]
    if name == "flm_distill_second":
        options += [f"algo.teacher_f_path={teacher}", f"algo.teacher_g_path={first_stage}/checkpoints/last.ckpt"]
    elif name != "ar" and "evidence" not in objective:  # that teacher reads views
        options += [f"algo.teacher_path={teacher}"]
    train(config_of(tmp_path / "whole", *options, "trainer.max_steps=5"))
    train(config_of(tmp_path / "parts", *options, "trainer.max_steps=3"))
    train(config_of(tmp_path / "parts", *options, "trainer.max_steps=5"))
    assert_identical(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))

    alone = tmp_path / "alone.ckpt"
    (tmp_path / "whole" / "checkpoints" / "last.ckpt").rename(alone)
    sample = ["mode=sample_eval", f"eval.checkpoint_path={alone}", "eval.real_data=null", "sampling.steps=2"]
    assert command(monkeypatch, *sample, "loader.eval_batch_size=2", f"hydra.run.dir={tmp_path / 's'}") == 0


def test_the_recipes_shrink_to_seconds(tmp_path, corpus):
    """debug=tiny fits over an experiment, and so does a shorter run than the recipe's."""
    config = config_of(tmp_path, "experiment=pydoc_flm", *tiny(corpus, "trainer.max_steps=8", "logger=none"))
    assert train(config)["val/denoising_ce_nats_per_token"] > 0  # shorter than its validation interval: validated once


def test_bytes_and_pydoc_train(tmp_path):
    train(config_of(tmp_path, "debug=tiny", "tokenizer=bytes", "trainer.max_steps=3", "logger=none"))
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt").description.vocab_size == 257


def test_a_network_that_sees_little_is_told_what_does_better(tmp_path, corpus, capsys):
    """Bytes are more than the width of `debug=tiny`."""
    wide = ["tokenizer=bytes", "trainer.max_steps=1"]
    for reads, told in (("view", True), ("evidence", False)):
        train(config_of(tmp_path / reads, *tiny(corpus, *wide, f"algo.reads={reads}")))
        out = capsys.readouterr().out
        assert ("note: algo.reads=view shows the network" in out) is told
