"""A run knows what it is: going on under another config, on other text, or twice at once is refused before anything changes."""

import json
import multiprocessing
import os
import signal
import socket
import time

import pytest
from running import config_of, tiny, write_corpus

from flm.tasks.run_folder import alone_in
from flm.tasks.train import train

QUIET = ["callbacks.sample=null", "callbacks.generation=null", "logger=none", "trainer.val_check_interval=2"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of two steps out of four, and the options it was started with."""
    folder = tmp_path_factory.mktemp("begun")
    corpus = write_corpus(folder / "corpus", documents=10)
    options = tiny(corpus, *QUIET, "trainer.limit_val_batches=1")
    train(config_of(folder / "run", *options, "trainer.max_steps=2"))
    return folder / "run", options


def contents(folder):
    return {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


REFUSED = {
    "algo.clean_given": "algo.clean_given=true",
    "algo._target_": "algo=ar",
    "model.num_blocks": "model.num_blocks=3",
    "model.output_softcap": "model.output_softcap=null",
    "model.length": "model.length=16",
    "data.valid_fraction": "data.valid_fraction=0.3",
    "tokenizer._target_": "tokenizer=bytes",
    "loader.global_batch_size": "loader.global_batch_size=16",
    "seed": "seed=2",
    "lr_scheduler.warmup_steps": "lr_scheduler.warmup_steps=1",
    "training.ema": "training.ema=0.5",
    "trainer.gradient_clip_val": "trainer.gradient_clip_val=2.0",
}


@pytest.mark.parametrize("key", REFUSED)
def test_another_run_is_refused_and_nothing_changes(begun, key):
    folder, options = begun
    before = contents(folder)
    with pytest.raises(ValueError) as raised:
        train(config_of(folder, *options, "trainer.max_steps=4", REFUSED[key]))
    text = str(raised.value)
    assert key in text and "checkpointing.allow_changes=[" in text and "last.ckpt" in text and "\n" not in text
    assert contents(folder) == before


def test_what_cannot_matter_passes_and_what_may_is_said(begun, tmp_path, capsys):
    folder, options = begun
    finished = train(config_of(folder, *options, "trainer.max_steps=2"))
    assert finished == {} and "finished: " in (said := capsys.readouterr().out) and "larger trainer.max_steps" in said
    harmless = [
        "logger=csv",
        "loader.num_workers=1",
        "loader.batch_size=4",
        "trainer.log_every_n_steps=1",
        "callbacks.progress=null",
    ]
    train(config_of(folder, *options, *harmless, "trainer.max_steps=3"))
    said = capsys.readouterr().out
    assert "goes on with trainer.max_steps=3; until step 2 it was 2" in said
    assert said.count("goes on with") == 1
    status = json.loads((folder / "status.json").read_text())
    assert (status["status"], status["step"], status["max_steps"]) == ("finished", 3, 3)
    train(config_of(folder, *options, "trainer.max_steps=4", "seed=2", "checkpointing.allow_changes=[seed]"))
    assert "goes on with seed=2; until step 3 it was 1" in capsys.readouterr().out
    assert json.loads((folder / "run.json").read_text())["config"]["seed"] == 2
    with pytest.raises(ValueError, match="seed=1"):  # it is that run now
        train(config_of(folder, *options, "trainer.max_steps=5"))


def test_a_schedule_of_the_whole_run_may_grow_with_it(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", documents=10)
    options = tiny(corpus, *QUIET, "lr_scheduler=cosine_decay", "lr_scheduler.warmup_steps=1")
    train(config_of(tmp_path / "run", *options, "trainer.max_steps=2"))
    train(config_of(tmp_path / "run", *options, "trainer.max_steps=3"))


def test_other_text_under_the_same_path_is_refused(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", documents=10)
    options = tiny(corpus, *QUIET)
    train(config_of(tmp_path / "run", *options, "trainer.max_steps=2"))
    (corpus / "000.txt").write_text("a dog sees the sea. " * 20)
    with pytest.raises(ValueError, match=r"data: the text has changed since this run began.*allow_changes=\[data\]"):
        train(config_of(tmp_path / "run", *options, "trainer.max_steps=3"))
    train(config_of(tmp_path / "run", *options, "trainer.max_steps=3", "checkpointing.allow_changes=[data]"))


def _hold(folder, held):
    with alone_in(folder):
        held.set()
        time.sleep(3600)


def test_one_run_at_a_time_and_a_dead_one_holds_nothing(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", documents=10)
    options = tiny(corpus, *QUIET, "trainer.max_steps=1")
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "run", held), daemon=True)
    process.start()
    assert held.wait(600)
    with pytest.raises(ValueError, match=f"a run is going on in it on {socket.gethostname()} as process {process.pid}"):
        train(config_of(tmp_path / "run", *options))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    train(config_of(tmp_path / "run", *options))
    assert not (tmp_path / "run" / ".owner.json").exists()
