"""mode=import, and hostile files in every place where a task reads one."""

import json
import sys
from pathlib import Path

import pytest
import torch
from running import command, config_of

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoints"))
from hostile import HARMLESS, HOSTILE
from published_layouts import L, V, duo, flm_v1, fmlm_v2, ran, tokenizer_folder

from flm.checkpoints.foreign import ImportChoices
from flm.checkpoints.load import load_algorithm, read_checkpoint
from flm.published.import_checkpoint import import_checkpoint
from flm.samplers.canvas import Canvas
from flm.tasks.assemble import new_algorithm
from flm.tasks.evaluation import EvalOptions, load_model
from flm.tasks.machine import Machine
from flm.tasks.run import Run
from flm.training.checkpointing import AtomicCheckpointIO


def loaded(folder, path):
    run = Run(config_of(folder, f"eval.checkpoint_path={path}"))
    return load_model(run.options(EvalOptions, "eval"), Machine.of(run["trainer"], run["model"]))


@pytest.mark.parametrize("make", [lambda: flm_v1(compiled=True), fmlm_v2])
def test_what_is_imported_loads_with_nothing_else_and_is_the_same_model(monkeypatch, capfd, tmp_path, make):
    source, run = tmp_path / "published.ckpt", tmp_path / "run"
    folder = tokenizer_folder(tmp_path / "bert")
    torch.save(make()[0], source)
    options = ["mode=import", f"eval.checkpoint_path={source}", f"eval.tokenizer_name_or_path={folder}", f"hydra.run.dir={run}"]
    assert command(monkeypatch, *options) == 0
    assert f"{V} tokens, length {L}, step 1,234, with averaged weights" in capfd.readouterr().out
    found = json.loads((run / "import.json").read_text())
    written = run / found["file"]
    assert found["algorithm"] in ("FLM", "FMLM") and found["averaged"] and found["model"]["attention_softcap"] == 50.0
    folder.rename(tmp_path / "gone")
    source.rename(tmp_path / "gone.ckpt")

    lm = loaded(tmp_path / "eval", written)
    assert lm.tokenizer.encode("the cat sees a fish .") == [5, 6, 9, 11, 12, 13]
    assert found["checkpoint"]["sha256"] == read_checkpoint(tmp_path / "gone.ckpt").sha256 and lm.source.step == 1234
    torch.load(written, weights_only=True)  # ours are plain
    for averaged in (True, False):
        direct, _ = load_algorithm(tmp_path / "gone.ckpt", use_average=averaged)
        through, _ = load_algorithm(written, use_average=averaged)
        for key, weight in direct.state_dict().items():
            assert torch.equal(through.state_dict()[key], weight), key
        texts = [
            model.generate(Canvas.between([], [], L, 2, torch.device("cpu")), 3, torch.Generator().manual_seed(1))
            for model in (direct, through)
        ]
        assert torch.equal(*texts)
    assert ran == []

    # once is enough
    assert command(monkeypatch, "mode=import", f"eval.checkpoint_path={written}", f"hydra.run.dir={run}") == 1
    assert "imported.ckpt: is a checkpoint of this project already" in capfd.readouterr().err


def test_mistakes_give_one_line_and_write_nothing(monkeypatch, capfd, tmp_path):
    source, run = tmp_path / "x.ckpt", tmp_path / "run"
    torch.save(flm_v1()[0], source)
    torch.save(duo()[0], tmp_path / "duo.ckpt")
    base = ["mode=import", f"hydra.run.dir={run}"]
    cases = {
        (): "eval.checkpoint_path is not set",
        (f"eval.checkpoint_path={source}",): "set eval.tokenizer_name_or_path",
        (f"eval.checkpoint_path={source}", "eval.imported_as=fmlm"): "eval.imported_as",
        (f"eval.checkpoint_path={tmp_path}/duo.ckpt",): "duo.ckpt",
        (f"eval.checkpoint_path={tmp_path}/none.ckpt",): "/none.ckpt",
    }
    for options, line in cases.items():
        assert command(monkeypatch, *base, *options) == 1
        errors = [text for text in capfd.readouterr().err.splitlines() if text.startswith("error: ")]
        assert len(errors) == 1 and line in errors[0]
    assert not list(run.rglob("*.ckpt")) and not list(run.rglob("*.json"))


START = "algo.initialize_student_from_teacher=false"  # it has another shape


def evaluate(path, folder):
    loaded(folder, path)


def teach(path, folder):
    new_algorithm(config_of(folder, "algo=fmlm", f"algo.teacher_path={path}", "debug=tiny", f"model.length={L}", START), V)


def bring_in(path, folder):
    import_checkpoint(config_of(folder, "mode=import", f"eval.checkpoint_path={path}"))


def resume(path, folder):
    AtomicCheckpointIO().load_checkpoint(path)


def residual_base(path, folder):
    torch.save(fmlm_v2()[0], folder.parent / "g.ckpt")
    choices = ImportChoices(imported_as="flm_distill", imported_base_path=str(path), tokenizer=False)
    load_algorithm(folder.parent / "g.ckpt", choices=choices)


@pytest.mark.parametrize("place", [evaluate, teach, bring_in, resume, residual_base])
@pytest.mark.parametrize(
    "name",
    ["reduce", "build", "reduce among the weights", "stack global", "nested zip", "oversized storage", "legacy",
     "path traversal in a storage", "persistent id of callables", "string of an exabyte", *HARMLESS],
)  # fmt: skip
def test_hostile_files_wherever_one_is_read(tmp_path, name, place):
    flag, path = tmp_path / "ran", tmp_path / "x.ckpt"
    (HOSTILE | HARMLESS)[name](path, flag)
    folder = tmp_path / "run"
    if name in HARMLESS and place in (teach, residual_base):
        place(path, folder)  # its weights are in order
    else:
        with pytest.raises(ValueError) as caught:
            place(path, folder)
        assert "x.ckpt" in str(caught.value) and "\n" not in str(caught.value)
    assert not flag.exists() and not list(tmp_path.rglob("imported.ckpt"))
