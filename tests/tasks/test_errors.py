"""Whatever a user gets wrong: one clear line that names it, exit status 1, and nothing half-written."""

import io
import sys

import pytest
from running import command, config_of, tiny, write_corpus

from flm.tasks.train import train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents=10)


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(config_of(folder, *tiny(corpus, "trainer.max_steps=2", "logger=none")))
    return folder / "checkpoints" / "last.ckpt"


def fails(monkeypatch, capfd, *arguments):
    assert command(monkeypatch, *arguments) == 1
    printed = capfd.readouterr().err
    error = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and "Error executing job" not in printed and "Traceback" not in printed
    return error[0]


def test_config_mistakes(monkeypatch, capfd, tmp_path, corpus):
    run = f"hydra.run.dir={tmp_path}"
    cases = {
        ("model.depth=3",): "depth",
        ("+model.depth=3",): "depth",
        ("algo=flmm",): "algo=flmm: there is no such algo; did you mean flm?; there are ar, dbtm,",
        ("experiment=nothing",): "experiment=nothing: there is no such experiment; there are benchmark_gpu,",
        ("trainer.max_stps=3",): "max_stps",
        ("data=text",): "data.path",
        ("data=text", f"data.path={tmp_path}/nothing"): "nothing",
        ("model.num_heads=5",): "num_heads",
        ("loader.global_batch_size=7", "loader.batch_size=2"): "loader.global_batch_size",
        ("algo.clock={_target_: os.system}",): "os.system",
        ("tokenizer.vocab_size=5",): "tokenizer.vocab_size",
        ("mode=sample_eval",): "eval.checkpoint_path",
        ("lr_scheduler=null",): "=none",
        ("trainer.precision=bf16-true",): "trainer.precision",
        (f"checkpointing.resume_ckpt_path={tmp_path}/typo.ckpt",): "typo.ckpt",
        ("algo=fmlm", "algo.boundary_prob=0"): "algo.boundary_prob",
        ("algo=fmlm", f"algo.teacher_path={tmp_path}/none.ckpt"): "algo.teacher_path",
    }
    for overrides, named in cases.items():
        base = tiny(corpus)[:1] if overrides[0].startswith(("data", "tokenizer")) else tiny(corpus)
        assert named in fails(monkeypatch, capfd, *base, *overrides, run), overrides


def test_bad_text(monkeypatch, capfd, tmp_path):
    latin, empty = tmp_path / "latin.txt", tmp_path / "empty.txt"
    latin.write_bytes(b"caf\xe9 " * 100)
    empty.write_text("")
    for path in (latin, empty):
        line = fails(monkeypatch, capfd, "debug=tiny", "data=text", f"data.path={path}", f"hydra.run.dir={tmp_path / 'run'}")
        assert path.name in line
    assert not list((tmp_path / "run").rglob("*.bin"))


def test_bad_checkpoints(monkeypatch, capfd, tmp_path, checkpoint):
    run = ["mode=sample_eval", f"hydra.run.dir={tmp_path / 'run'}"]
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(checkpoint.read_bytes()[:5000])
    for path in (cut, tmp_path / "missing.ckpt"):
        assert path.name in fails(monkeypatch, capfd, *run, f"eval.checkpoint_path={path}")
    good = [*run, f"eval.checkpoint_path={checkpoint}"]
    cases = {
        "sampling.steps=0": "sampling.steps",
        "sampling.steps=[]": "sampling.steps",
        "sampling.temperature=-1": "sampling.temperature",
        "+sampling.magic=3": "magic",
        "sampling.infill=no hole": "sampling.infill",
        "sampling.prompt=" + "t" * 50: "sampling.prompt",
        "sampling.prompt=Ж": "sampling.prompt",
        "sampling.infill=Ж [3]": "sampling.infill",
        "sampling.num_sample_batches=0": "sampling.num_sample_batches",
    }
    for override, named in cases.items():
        assert named in fails(monkeypatch, capfd, *good, override)
    assert not list((tmp_path / "run").glob("*.json*"))


def test_resuming_with_another_vocabulary(monkeypatch, capfd, tmp_path, checkpoint):
    other = write_corpus(tmp_path / "other", documents=10)
    (other / "more.txt").write_text("0123456789 ABC " * 20)
    resume = f"checkpointing.resume_ckpt_path={checkpoint}"
    line = fails(
        monkeypatch,
        capfd,
        *tiny(other, resume, "trainer.max_steps=9", "checkpointing.allow_changes=[data]"),
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    assert "vocabulary" in line and checkpoint.name in line


def test_a_teacher_of_another_tokenizer(monkeypatch, capfd, tmp_path, checkpoint):
    """As many tokens, other ones."""
    other = write_corpus(tmp_path / "other", documents=10)
    for path in other.iterdir():
        path.write_text(path.read_text().upper())
    run = [*tiny(other, "algo=fmlm", f"algo.teacher_path={checkpoint}"), f"hydra.run.dir={tmp_path / 'run'}"]
    line = fails(monkeypatch, capfd, *run)
    assert "algo.teacher_path" in line and "vocabulary" in line


def test_no_network_for_a_hub_name(monkeypatch, capfd, tmp_path, corpus):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else the library tries for a minute
    run = [*tiny(corpus, "tokenizer=huggingface", "tokenizer.name_or_path=some/model"), f"hydra.run.dir={tmp_path}"]
    assert "tokenizer.name_or_path" in fails(monkeypatch, capfd, *run)


def test_a_defect_of_the_program_is_not_hidden(monkeypatch, tmp_path, corpus):
    def broken(config):
        raise KeyError("a bug")

    monkeypatch.setattr("flm.tasks.train.train", broken)
    with pytest.raises(KeyError):
        command(monkeypatch, *tiny(corpus), f"hydra.run.dir={tmp_path}")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_error_has_a_line_of_its_own_after_a_progress_bar(monkeypatch, tmp_path, corpus):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)

    def diverges(self):
        return "is too high"

    monkeypatch.setattr("flm.training.step_loss.DivergenceCheck.problem", diverges)
    run = [*tiny(corpus, "trainer.max_steps=6", "logger=none"), f"hydra.run.dir={tmp_path / 'run'}"]
    assert command(monkeypatch, *run) == 1
    shown = terminal.getvalue()
    assert "Training" in shown and "\nerror: the loss is too high" in shown


@pytest.mark.slow
def test_a_compiler_that_fails(monkeypatch, capfd, tmp_path, corpus):
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho no >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, str(compiler)))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    short = ["trainer.max_steps=1", "logger=none", "model.compile=true", f"hydra.run.dir={tmp_path / 'run'}"]
    line = fails(monkeypatch, capfd, *tiny(corpus, *short))
    assert line.startswith("error: model.compile: ") and "set model.compile=false" in line


def test_unknown_keys_name_the_nearest_and_the_plus_form(monkeypatch, capfd, tmp_path, corpus):
    run = f"hydra.run.dir={tmp_path}"
    cases = {
        "trainer.max_stps=3": "trainer.max_stps: trainer takes no max_stps; did you mean trainer.max_steps?",
        "algo.clean_gven=true": "algo.clean_gven: FLM takes no clean_gven; did you mean algo.clean_given?",
        "loader.bach_size=3": "did you mean loader.batch_size?",
        "sampling.temprature=1": "FLM with solver=euler takes no temprature; did you mean sampling.temperature?",
        "optim.amsgrad=true": "optim.amsgrad: the config has no such key; +optim.amsgrad=... adds it",
        "optim.amsgrd=true": "did you mean optim.amsgrad?",
        "callbacks.sampl.count=3": "callbacks.sampl",
        "+lodaer.batch_size=3": "lodaer: there is no such key; did you mean loader?",
        "eval.checkpont_path=x": "did you mean eval.checkpoint_path?",
    }
    for override, line in cases.items():
        assert line in fails(monkeypatch, capfd, *tiny(corpus), override, run), override


@pytest.mark.parametrize("place", ["outputs", "mine", "deep/er/mine"])
def test_a_refused_run_leaves_nothing_behind(monkeypatch, capfd, tmp_path, corpus, place):
    """Refused by a range, and by what only reading says."""
    monkeypatch.chdir(tmp_path)
    where = [] if place == "outputs" else [f"hydra.run.dir={place}"]
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    fails(monkeypatch, capfd, *tiny(corpus, "optim.lr=-1"), *where)
    fails(monkeypatch, capfd, "debug=tiny", "data=text", "data.path=latin.txt", *where)
    assert {path.name for path in tmp_path.iterdir()} == {"latin.txt"}


def test_a_refused_run_leaves_what_was_there(monkeypatch, capfd, tmp_path, corpus):
    (tmp_path / "kept" / "empty").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    for place in ("kept", "kept/empty", "kept/new/run", "run"):
        fails(monkeypatch, capfd, *tiny(corpus, "optim.lr=-1"), f"hydra.run.dir={tmp_path / place}")
    assert (tmp_path / "kept" / "empty").is_dir() and not (tmp_path / "kept" / "new").exists()
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
