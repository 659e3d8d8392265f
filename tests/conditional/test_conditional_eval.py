"""From pairs to scores through the command line: train, respond, score; and code from the same sort of file."""

import json
import os

import pytest
from code_files import HUMAN_EVAL, write
from running import command, config_of
from two_processes import free_ports, run_two

from flm.code.cell import seccomp
from flm.code.code_eval import code_eval
from flm.tasks.train import train

WORDS = {"red": "rot", "blue": "blau", "green": "gruen", "black": "schwarz"}
PAIRS = [{"prompt": word + "?", "response": f"auf Deutsch ist das {answer}"} for word, answer in WORDS.items()]


def overfit(folder, pairs, *overrides):
    """An autoregressive model that knows the pairs by heart."""
    path = write(folder / "pairs.jsonl", pairs)
    data = ["data=pairs", f"data.path={path}", f"data.valid_path={path}", "tokenizer=characters", "algo=ar"]
    run = ["lr_scheduler.warmup_steps=10", "optim.lr=1e-2", "training.ema=null", "callbacks.sample=null", "logger=none"]
    run += ["loader.global_batch_size=4", "model.hidden_size=32"]
    train(config_of(folder / "run", "debug=tiny", *data, *run, "trainer.val_check_interval=1000", *overrides))
    return folder / "run" / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    return overfit(tmp_path_factory.mktemp("pairs"), PAIRS, "model.length=40", "trainer.max_steps=120")


@pytest.fixture(scope="module")
def programmer(tmp_path_factory):
    pairs = [{"prompt": row["prompt"], "response": row["canonical_solution"]} for row in HUMAN_EVAL[::2]]
    length = max(len(pair["prompt"]) + len(pair["response"]) for pair in pairs) + 4
    options = ('data.separator=""', f"model.length={length}", "trainer.max_steps=120")
    return overfit(tmp_path_factory.mktemp("code"), pairs, *options)


COMMON = ["trainer.accelerator=cpu", "loader.eval_batch_size=8", "eval.disable_ema=true", "sampling.top_k=1"]


def evaluate(monkeypatch, mode, checkpoint, folder, *overrides):
    run = [f"mode={mode}", f"eval.checkpoint_path={checkpoint}", f"hydra.run.dir={folder}", *COMMON]
    assert command(monkeypatch, *run, *overrides) == 0
    return json.loads((folder / f"{mode}.json").read_text())


def test_what_was_learned_by_heart_is_an_exact_match(translator, tmp_path, monkeypatch):
    found = evaluate(monkeypatch, "conditional_eval", translator, tmp_path, "conditional_eval.samples=2")
    scores = found["by_steps"]["1"]
    assert scores["prompts"] == 4 and scores["samples"] == 2 and found["left_out"] == 0
    assert scores["exact_match"]["mean"]["mean"] == scores["rouge_l"]["best"]["mean"] == 1
    assert scores["bleu"]["mean"]["mean"] == pytest.approx(1) and scores["corpus_bleu"] == pytest.approx(100)
    lines = [json.loads(line) for line in (tmp_path / scores["file"]).read_text().splitlines()]
    assert {line["prompt"]: line["responses"][0] for line in lines} == {p["prompt"] + "\n": p["response"] for p in PAIRS}
    assert found["kind"] == "conditional_eval" and len(found["checkpoint"]["sha256"]) == 64


def test_other_pairs_than_those_of_the_run(translator, tmp_path, monkeypatch):
    """Scores fall where the references are others: they are not of the model's own making."""
    path = write(tmp_path / "other.jsonl", [{**pair, "response": "auf Deutsch"} for pair in PAIRS])
    data = ["eval.real_data=current", "data=pairs", f"data.path={path}", f"data.valid_path={path}"]
    scores = evaluate(monkeypatch, "conditional_eval", translator, tmp_path, *data)["by_steps"]["1"]
    assert scores["exact_match"]["mean"]["mean"] == 0
    assert scores["rouge_l"]["mean"]["mean"] == pytest.approx(2 * 2 / 7)
    long = write(tmp_path / "long.jsonl", [*PAIRS, {"prompt": "red?", "response": "a" * 60}])
    data[2:] = [f"data.path={long}", f"data.valid_path={long}"]
    found = evaluate(monkeypatch, "conditional_eval", translator, tmp_path / "long", *data)
    assert found["left_out"] == 1 and found["by_steps"]["1"]["prompts"] == 4


def test_what_cannot_be_evaluated_is_told(translator, tmp_path, monkeypatch, capfd):
    run = ["mode=conditional_eval", f"eval.checkpoint_path={translator}", f"hydra.run.dir={tmp_path}", *COMMON]
    cases = {
        ("conditional_eval.samples=0",): "conditional_eval.samples",
        ("eval.real_data=null",): "eval.real_data",
        ("eval.real_data=current", "data=pydoc"): "no prompts with responses",
    }
    for overrides, named in cases.items():
        assert command(monkeypatch, *run, *overrides) == 1
        assert named in capfd.readouterr().err


needs_sandbox = pytest.mark.skipif(not seccomp.supported(), reason="generated code is only run where it can be confined")


@needs_sandbox
def test_code_learned_by_heart_passes(programmer, tmp_path, monkeypatch):
    problems = write(
        tmp_path / "problems.jsonl.gz", [*HUMAN_EVAL[::2], {**HUMAN_EVAL[0], "prompt": "x" * 500, "task_id": "long/9"}]
    )
    options = [f"code_eval.path={problems}", "code_eval.samples=2", "code_eval.k=[1,2,5]", "code_eval.workers=2"]
    found = evaluate(monkeypatch, "code_eval", programmer, tmp_path, *options)
    scores = found["by_steps"]["1"]
    assert (
        scores["pass_at"]["1"]["mean"] == scores["pass_at"]["2"]["mean"] == pytest.approx(2 / 3)
        and "5" not in scores["pass_at"]
    )
    assert scores["exact_match"]["mean"] == pytest.approx(2 / 3) and list(found["not_asked"].values()) == [1]
    assert scores["compiled_at"]["1"]["mean"] == 1 and scores["compiled_at"]["1"]["count"] == 2  # of what was asked
    assert scores["suspicious"] == 0
    lines = [json.loads(line) for line in (tmp_path / scores["file"]).read_text().splitlines()]
    assert [line["passed"] for line in lines] == [True] * 4 + [False] * 2
    assert lines[0]["completion"].startswith("    return 2 * x") and lines[0]["task_id"] == "HumanEval/0"
    assert found["sandbox"]["seccomp"] and found["config"]["code_eval"]["samples"] == 2


@needs_sandbox
def test_holes_keep_to_their_slots(programmer, tmp_path, monkeypatch):
    problems = write(tmp_path / "problems.jsonl", HUMAN_EVAL[::2])
    options = [f"code_eval.path={problems}", "code_eval.hidden_lines=0.5", "code_eval.hole_tokens=5"]
    found = evaluate(monkeypatch, "code_eval", programmer, tmp_path, *options)
    lines = [json.loads(line) for line in (tmp_path / found["by_steps"]["1"]["file"]).read_text().splitlines()]
    written = [line["completion"] if isinstance(line["completion"], list) else [line["completion"]] for line in lines]
    assert [len(holes) for holes in written] == [1, 2] and all(len(text) <= 5 for holes in written for text in holes)


@needs_sandbox
def test_references_and_nothing_need_no_model(tmp_path, monkeypatch):
    problems = write(tmp_path / "problems.jsonl", HUMAN_EVAL)
    for answers, value in (("reference", 1), ("empty", 0)):
        run = ["mode=code_eval", f"code_eval.path={problems}", f"code_eval.answers={answers}", f"hydra.run.dir={tmp_path}"]
        assert command(monkeypatch, *run, "code_eval.first=1") == 0
        found = json.loads((tmp_path / "code_eval.json").read_text())
        assert found["problems"] == 2 and found["by_steps"][answers]["pass_at"]["1"]["mean"] == value


def _member(rank, port, folder, options):
    """What torchrun would start; each process with a folder of its own, to see who writes."""
    os.environ["MASTER_PORT"] = str(port)
    code_eval(config_of(folder / str(rank), *options))


@needs_sandbox
def test_two_processes_write_and_judge_what_one_does(programmer, tmp_path):
    problems = write(tmp_path / "problems.jsonl", [*HUMAN_EVAL[::2], {**HUMAN_EVAL[0], "task_id": "again/3"}])
    options = ["mode=code_eval", f"eval.checkpoint_path={programmer}", f"code_eval.path={problems}", "code_eval.samples=3",
               "code_eval.k=[1,3]", "trainer.accelerator=cpu", "loader.eval_batch_size=2", "eval.disable_ema=true",
               "sampling.temperature=2.0"]  # fmt: skip
    code_eval(config_of(tmp_path / "alone", *options))
    run_two(_member, free_ports(1)[0], tmp_path, options)
    name = "samples-1.jsonl"
    texts = (tmp_path / "alone" / name).read_text()
    assert (tmp_path / "0" / name).read_text() == texts and len(set(texts.splitlines())) > 4
    alone, pair = (json.loads((tmp_path / who / "code_eval.json").read_text()) for who in ("alone", "0"))
    assert alone["by_steps"] == pair["by_steps"] and not (tmp_path / "1").exists()


@needs_sandbox
def test_broken_problems_stop_the_run_before_anything_is_written(tmp_path, monkeypatch, capfd):
    problems = write(
        tmp_path / "p.jsonl",
        [*HUMAN_EVAL, {**HUMAN_EVAL[0], "test": "def check(c):\n    assert c(1) == 7\n", "task_id": "b/9"}],
    )
    run = ["mode=code_eval", f"code_eval.path={problems}", f"hydra.run.dir={tmp_path / 'run'}"]
    for answers in ("reference", "empty"):
        assert command(monkeypatch, *run, f"code_eval.answers={answers}") == 1
        assert "b/9: failed" in capfd.readouterr().err and not list((tmp_path / "run").glob("*.json*"))
    assert command(monkeypatch, *run, "code_eval.answers=reference", "code_eval.skip=[b/9]") == 0
    found = json.loads((tmp_path / "run" / "code_eval.json").read_text())
    assert found["problems"] == 3 and found["references"] == {"timeout": [], "suspicious": []}
    assert command(monkeypatch, *run, "code_eval.answers=reference", "code_eval.skip=[b/8]") == 1
    assert "code_eval.skip" in capfd.readouterr().err


def test_mistakes_in_code_eval(tmp_path, monkeypatch, capfd):
    problems = write(tmp_path / "problems.jsonl", HUMAN_EVAL)
    good = ["mode=code_eval", f"code_eval.path={problems}", "code_eval.answers=empty", f"hydra.run.dir={tmp_path / 'run'}"]
    cases = {
        ("code_eval.path=null",): "code_eval.path",
        ("code_eval.answers=none",): "code_eval.answers",
        ("code_eval.samples=0",): "code_eval.samples",
        ("code_eval.k=[3]",): "code_eval.k",
        ("code_eval.hole_tokens=0",): "code_eval.hole_tokens",
        ("code_eval.new_tokens=0",): "code_eval.new_tokens",
        ("code_eval.first=50",): "code_eval.first",
        ("code_eval.limits.memory_mb=1",): "code_eval.limits",
        ("code_eval.answers=model",): "eval.checkpoint_path",
    }
    for overrides, named in cases.items():
        assert command(monkeypatch, *good, *overrides) == 1, overrides
        assert named in capfd.readouterr().err, overrides
    assert not list((tmp_path / "run").glob("*.json*"))
