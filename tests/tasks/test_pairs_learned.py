"""Models learn what depends on a prompt, and to write into slots between given lines; all of it by the command line."""

import itertools
import json

import pytest
import torch
from code_files import write
from running import command

from flm.code.cell import seccomp
from flm.kl_flow.kl_flow import KLFlow

LETTERS = "abcde"
PAIRS = [{"prompt": a + b, "response": b + a} for a, b in itertools.product(LETTERS, LETTERS)]
# No two prompts have the same answer, so whoever does not see the prompt is right for one in 25, whatever is written.
WITHOUT_PROMPT = 1 / 25
# Whoever sees the letters but not their order: 5 prompts of twice the same letter, and half of the other 20.
WITHOUT_ORDER = (5 + 20 / 2) / 25
TINY = ["debug=tiny", "tokenizer=characters", "model.hidden_size=32", "loader.global_batch_size=32"]
TINY += ["optim.lr=3e-3", "lr_scheduler.warmup_steps=10", "training.ema=null", "trainer.val_check_interval=100000"]
TINY += ["callbacks.sample=null", "callbacks.generation=null", "logger=none"]
EVALUATED = ["trainer.accelerator=cpu", "loader.eval_batch_size=64", "eval.disable_ema=true"]


def trained(folder, rows, *overrides):
    """The checkpoint of `python main.py ...` on these rows."""
    path = write(folder / "pairs.jsonl", rows)
    data = [f"data.path={path}", f"data.valid_path={path}"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert command(monkeypatch, *TINY, *data, f"hydra.run.dir={folder / 'run'}", *overrides) == 0
    return folder / "run" / "checkpoints" / "last.ckpt"


def evaluated(monkeypatch, mode, checkpoint, folder, *overrides):
    run = [f"mode={mode}", f"eval.checkpoint_path={checkpoint}", f"hydra.run.dir={folder}", *EVALUATED]
    assert command(monkeypatch, *run, *overrides) == 0
    return json.loads((folder / f"{mode}.json").read_text())


@pytest.fixture(scope="module", params=["target", "excluded"])
def reverser(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reverse")
    run = ["algo=kl_flow", "data=pairs", f"data.layout.padding={request.param}", "model.length=8", "trainer.max_steps=300"]
    return request.param, trained(folder, PAIRS, *run)


@pytest.mark.parametrize("scheme", ["basic", "sampling", "hybrid"])
def test_answers_depend_on_the_prompt(reverser, scheme, tmp_path, monkeypatch):
    padding, checkpoint = reverser
    options = [f"sampling.scheme={scheme}", "sampling.steps=[4,16]", "conditional_eval.samples=2"]
    if padding == "excluded":
        options.append("conditional_eval.new_tokens=reference")
    found = evaluated(monkeypatch, "conditional_eval", checkpoint, tmp_path, *options)
    assert found["left_out"] == 0 and found["options"]["scheme"] == scheme
    for entry in found["by_steps"].values():
        assert entry["prompts"] == 25
        assert entry["exact_match"]["mean"]["mean"] > 0.8 > WITHOUT_ORDER > WITHOUT_PROMPT


@pytest.mark.slow
def test_so_do_those_of_a_flow_that_reads_prompts_without_noise(tmp_path, monkeypatch):
    run = ["algo=flm", "algo.clean_given=true", "data=pairs", "model.length=8", "trainer.max_steps=300"]
    found = evaluated(monkeypatch, "conditional_eval", trained(tmp_path, PAIRS, *run), tmp_path / "out", "sampling.steps=4")
    assert found["by_steps"]["4"]["exact_match"]["mean"]["mean"] > 0.8 > WITHOUT_ORDER


def test_a_model_that_never_saw_padding_is_not_shown_it(reverser, tmp_path, monkeypatch, capfd):
    padding, checkpoint = reverser
    if padding != "excluded":
        pytest.skip("of the other padding")
    run = ["mode=conditional_eval", f"eval.checkpoint_path={checkpoint}", f"hydra.run.dir={tmp_path}", *EVALUATED]
    assert command(monkeypatch, *run) == 1
    error = capfd.readouterr().err.strip()
    assert "conditional_eval.new_tokens" in error and "padding=excluded" in error and "\n" not in error


DIGITS = range(5)
SLOT = 9
CODE = [
    {
        "task_id": f"digit/{digit}",
        "prompt": f"#{digit}\n",
        "entry_point": "f",
        "canonical_solution": f"def f():\n return {digit}\n",
        "test": f"def check(candidate):\n    assert candidate() == {digit}\n",
    }
    for digit in DIGITS
]


@pytest.mark.skipif(not seccomp.supported(), reason="generated code is only run where it can be confined")
def test_lines_are_written_into_their_slots(tmp_path, monkeypatch):
    rows = [{"prompt": row["prompt"], "response": row["canonical_solution"]} for row in CODE]
    run = ["algo=kl_flow", "data=pairs_lines", f"data.layout.line_length={SLOT}", 'data.separator=""', "model.length=25"]
    checkpoint = trained(tmp_path, rows, *run, "data.layout.levels=2", "trainer.max_steps=400")
    filled = []
    generate = KLFlow.generate

    def seen(self, canvas, *arguments, **options):
        out = generate(self, canvas, *arguments, **options)
        filled.append((canvas, out))
        return out

    monkeypatch.setattr(KLFlow, "generate", seen)
    problems = write(tmp_path / "problems.jsonl", CODE)
    options = [f"code_eval.path={problems}", "code_eval.samples=2", f"code_eval.hole_tokens={SLOT}", "sampling.steps=8"]
    for share, holes in ((0, 1), (1, 2)):
        found = evaluated(
            monkeypatch, "code_eval", checkpoint, tmp_path / str(holes), *options, f"code_eval.hidden_lines={share}"
        )["by_steps"]["8"]
        lines = [json.loads(line) for line in (tmp_path / str(holes) / found["file"]).read_text().splitlines()]
        written = [line["completion"] if holes > 1 else [line["completion"]] for line in lines]
        assert all(len(texts) == holes and all(len(text) <= SLOT for text in texts) for texts in written)
        assert sum(int(canvas.editable.sum()) for canvas, _ in filled) == len(lines) * holes * SLOT
        assert all(torch.equal(out[~canvas.editable], canvas.tokens[~canvas.editable]) for canvas, out in filled)
        filled.clear()
    # all lines hidden: the digit stands in the prompt alone, and whoever does not see it is right once in five
    assert found["pass_at"]["1"]["mean"] > 0.4 > 1 / len(DIGITS)
