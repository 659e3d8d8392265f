"""What flm.load takes, every mode takes: one model as a run folder, a checkpoint, an exported folder, an artifact."""

import json

import pytest
import torch
from hydra.utils import get_method
from running import config_of, tiny, write_corpus

import flm
from flm.export.export import export
from flm.tasks.train import train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents=10)


@pytest.fixture(scope="module")
def sources(corpus, tmp_path_factory):
    """A left-to-right model in every form; the artifact keeps its weights in float16."""
    root = tmp_path_factory.mktemp("sources")
    settings = ("algo=ar", "trainer.max_steps=8", "optim.lr=1e-2", "training.ema=0.5", "logger=none", "model.length=16")
    train(config_of(root / "run", *tiny(corpus, *settings)))
    common = [f"eval.checkpoint_path={root / 'run'}", "trainer.accelerator=cpu"]
    export(config_of(root / "folder", "mode=export", *common))
    packed = ["mode=artifact", "artifact.evaluation=null", "artifact.limit_bytes=null", "artifact.kept_elements=1000000"]
    config = config_of(root / "packed", *packed, *common)
    get_method(config.mode._target_)(config)
    return {
        "run": root / "run",
        "checkpoint": root / "run" / "checkpoints" / "last.ckpt",
        "folder": root / "folder",
        "artifact": root / "packed" / "model.flmpack",
    }


def done(mode, corpus, folder, source, *overrides):
    """The result file of a mode."""
    options = ["eval.real_data=current", "loader.eval_batch_size=2", "eval.max_examples=4", "eval.pilot_draws=0", *overrides]
    config = config_of(folder, f"mode={mode}", *tiny(corpus), f"eval.checkpoint_path={source}", *options)
    get_method(config.mode._target_)(config)
    names = {"sample_eval": "results", "ppl_eval": "likelihood"}
    return json.loads((folder / f"{names.get(mode, mode)}.json").read_text())


def test_they_are_one_model(sources):
    text = "the cat sees fish."
    wanted = flm.load(sources["checkpoint"], device="cpu")
    for name, source in sources.items():
        lm = flm.load(source, device="cpu")
        assert lm.nll(text).nats == pytest.approx(wanted.nll(text).nats, rel=1e-3 if name == "artifact" else 1e-7), name
        assert (lm.source.step, lm.source.weights, lm.config["algo"]) == (8, "average", wanted.config["algo"])
        labels = {"run": "run", "checkpoint": "run", "folder": "folder", "artifact": "model"}
        assert lm.source.label == labels[name] and len(lm.source.sha256) == 64
    assert flm.load(sources["run"], device="cpu").source == wanted.source


MODES = {
    "sample_eval": ["sampling.steps=1"],
    "ppl_eval": [],
    "frontier": ["frontier.steps=1", "frontier.temperature=[0.5,1.0]"],
    "golf_eval": ["golf_eval.methods=[blocks]", "golf_eval.max_tokens=64"],
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_takes_each_of_them(mode, sources, corpus, tmp_path):
    found = {name: done(mode, corpus, tmp_path / name, source, *MODES[mode]) for name, source in sources.items()}

    def numbers(result):
        if mode == "ppl_eval":
            return result["likelihood"]["corpora"]["data"]["variants"]["model"]["nats_per_token"]
        if mode == "golf_eval":
            return result["golf_eval"]["methods"]["blocks"]["bits_per_byte"]
        points = result["points"] if mode == "frontier" else [one["metrics"] for one in result["generated"].values()]
        return [point["entropy_nats"]["mean"] for point in points]

    for name in ("checkpoint", "folder"):
        assert numbers(found[name]) == pytest.approx(numbers(found["run"]), rel=1e-6), name
    assert numbers(found["artifact"]) == pytest.approx(numbers(found["run"]), rel=0.05)
    assert found["run"]["checkpoint"] == found["checkpoint"]["checkpoint"] != found["folder"]["checkpoint"]


def test_an_exported_folder_is_exported_again_and_its_other_weights_are_refused(sources, tmp_path):
    run = ["mode=export", f"eval.checkpoint_path={sources['folder']}", "trainer.accelerator=cpu"]
    export(config_of(tmp_path / "again", *run))
    first, second = (
        flm.load(folder, device="cpu").algorithm.state_dict() for folder in (sources["folder"], tmp_path / "again")
    )
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(ValueError, match="holds the averaged weights alone"):
        export(config_of(tmp_path / "last", *run, "eval.disable_ema=true"))


@pytest.mark.parametrize("form", ["run", "folder"])
def test_a_judge_and_a_teacher_are_loaded_alike(form, sources, corpus, tmp_path):
    scored = [f"eval.scorer_checkpoint_path={sources[form]}", "eval.scorer=ar", "sampling.steps=1"]
    found = done("sample_eval", corpus, tmp_path / "scored", sources["checkpoint"], *scored)
    assert found["scorer"]["name"] == f"ar:{form}"
    flow = tmp_path / "flow"
    train(config_of(flow, *tiny(corpus, "trainer.max_steps=1", "logger=none", "model.length=16")))
    teacher = flow
    if form == "folder":
        teacher = tmp_path / "teacher"
        export(config_of(teacher, "mode=export", f"eval.checkpoint_path={flow}", "trainer.accelerator=cpu"))
    student = ["algo=fmlm", f"algo.teacher_path={teacher}", "trainer.max_steps=1", "logger=none", "model.length=16"]
    train(config_of(tmp_path / "student", *tiny(corpus, *student)))
    assert flm.load(tmp_path / "student", device="cpu").source.step == 1
