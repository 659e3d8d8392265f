"""The methods of few steps by the command line: trained, resumed, sampled from the checkpoint alone, exported, reported."""

import pytest
import torch
from tasks.running import command, config_of, tiny, write_corpus
from tasks.test_train_and_sample import assert_identical, state_of

import flm
from flm.tasks.train import train

CASES = {
    "flm times": ["algo.time_law={_target_: flm.few_step.time_law.AdaptiveTimeLaw,start: 1,every: 1,bins: 2}"],
    "simplex_dmd": ["algo.student_every=2"],
    "simplex_dmd evidence": ["algo.student_every=2", "algo.reads=evidence"],
    "kl_simplex_dmd": ["algo.student_every=2", "algo.features=sharpened"],
    "dbtm": [],
    "mpdc": [],
    "mpdc uniform": ["algo.source=uniform", "algo.divergence=jsd"],
}


TEACHERS = {
    "view": ["algo=flm"],
    "evidence": ["algo=flm", "algo.reads=evidence"],
    "kl": ["algo=kl_flow", "algo.features=sharpened"],
}
TAUGHT_BY = {"simplex_dmd": "view", "simplex_dmd evidence": "evidence", "kl_simplex_dmd": "kl"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A corpus, and short runs on it that teach."""
    folder = tmp_path_factory.mktemp("few_step")
    corpus = write_corpus(folder / "corpus", documents=20)
    for name, options in TEACHERS.items():
        quick = tiny(corpus, *options, "trainer.max_steps=6", "callbacks.sample=null", "logger=none")
        train(config_of(folder / name, *quick))
    return corpus, {name: folder / name / "checkpoints" / "last.ckpt" for name in TEACHERS}


@pytest.mark.parametrize("name", CASES)
def test_a_run_resumes_bit_for_bit_and_its_file_does_for_everything_else(name, world, tmp_path, monkeypatch):
    corpus, teachers = world
    algo, *_ = name.split()
    options = tiny(corpus, f"algo={algo}", *CASES[name], "model.dropout=0.1", "callbacks.sample=null", "loader.batch_size=4")
    options += [
        "callbacks.checkpoint_every_n_steps.every_n_train_steps=1",
        "trainer.limit_val_batches=1",
        "lr_scheduler.warmup_steps=1",
    ]
    options += [f"algo.teacher_path={teachers[TAUGHT_BY[name]]}"] if name in TAUGHT_BY else []
    train(config_of(tmp_path / "whole", *options, "trainer.max_steps=6"))
    for steps in (3, 6):
        train(config_of(tmp_path / "parts", *options, "trainer.max_steps=" + str(steps)))
    assert_identical(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))

    alone = tmp_path / "alone.ckpt"
    (tmp_path / "whole" / "checkpoints" / "last.ckpt").rename(alone)
    sampled, exported, report = (tmp_path / part for part in ("sampled", "exported", "report"))
    sample = ["mode=sample_eval", f"eval.checkpoint_path={alone}", "eval.real_data=null", "sampling.steps=[1,4]"]
    assert command(monkeypatch, *sample, "loader.eval_batch_size=2", f"hydra.run.dir={sampled}") == 0
    assert command(monkeypatch, "mode=export", f"eval.checkpoint_path={alone}", f"hydra.run.dir={exported}") == 0
    inputs = f"report.inputs=[{tmp_path / 'whole'},{sampled}]"
    assert command(monkeypatch, "mode=report", inputs, f"hydra.run.dir={report}") == 0
    assert type(flm.load(alone, device="cpu").algorithm).__name__ in (report / "tables.md").read_text()

    models = [flm.load(path, device="cpu") for path in (alone, next(exported.rglob("config.json")).parent)]
    prompted = [lm.generate(prompt="the cat ", n=2, steps=3, seed=1) for lm in models]
    assert prompted[0] == prompted[1] and all(text.startswith("the cat ") for text in prompted[0])
    states = [lm.algorithm.state_dict() for lm in models]
    assert states[0].keys() == states[1].keys() and all(torch.equal(w, states[1][k]) for k, w in states[0].items())
