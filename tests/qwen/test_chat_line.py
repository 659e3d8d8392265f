"""From a folder of Qwen3 to pass@1 of an instruction-tuned model: it is asked as its training asked it."""

import gzip
import json

import pytest
from qwen_line import TINY, json_lines, qwen_folder, script
from running import command

import flm
from flm.code.problems import load_problems

BODIES = {"double": "2 * x", "negate": "-x", "square": "x * x", "next": "x + 1"}


def problems(path):
    """Four functions, each with its test."""
    rows = [
        {
            "task_id": f"HumanEval/{number}",
            "prompt": f"def {name}(x):\n",
            "entry_point": name,
            "canonical_solution": f"    return {body}\n",
            "test": f"def check(candidate):\n    assert candidate(3) == {eval(body, {'x': 3})}\n",
        }
        for number, (name, body) in enumerate(BODIES.items())
    ]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return [problem.as_question() for problem in load_problems(path)]


@pytest.mark.slow
def test_a_model_trained_on_questions_answers_them_from_its_exported_folder(tmp_path, monkeypatch):
    for library in ("transformers", "datasets"):
        pytest.importorskip(library)
    qwen, asked = qwen_folder(tmp_path / "qwen3"), problems(tmp_path / "HumanEval.jsonl.gz")
    json_lines(tmp_path / "dclm" / "a.jsonl", [{"text": f"def f(x): return x + {n}\n" * 3} for n in range(24)])
    talks = [
        [
            {"role": "user", "content": problem.question},
            {"role": "assistant", "content": f"```python\ndef {name}(x):\n    return {body}\n```{' ' * copy}"},
        ]
        for problem, (name, body) in zip(asked, BODIES.items(), strict=True)
        for copy in range(3)
    ]
    json_lines(tmp_path / "ultrachat" / "a.jsonl", [{"messages": talk} for talk in talks])
    given = {"QWEN_PATH": qwen, "DATA_DIR": tmp_path}
    only = "data.sources={dclm: {weight: 1}, arxiv: null, open_web_math: null, wikipedia: null, mathpile: null}"
    tiny = [*TINY, "model.length=256", "data.valid_documents=2"]
    script(monkeypatch, tmp_path, "train_pretrain.sh", *tiny, only, OUTPUT_DIR=tmp_path / "pretrain", **given)
    learn = ["trainer.max_steps=300", "trainer.val_check_interval=300", "optim.lr=3e-3", "lr_scheduler.warmup_steps=30"]
    given |= {"OUTPUT_DIR": tmp_path / "sft", "MIDTRAIN_CHECKPOINT": tmp_path / "pretrain" / "checkpoints" / "last.ckpt"}
    script(monkeypatch, tmp_path, "train_sft.sh", *tiny, *learn, **given)
    last = f"eval.checkpoint_path={tmp_path / 'sft' / 'checkpoints' / 'last.ckpt'}"
    folder = tmp_path / "exported"
    export = ["mode=export", last, "eval.disable_ema=true", "trainer.accelerator=cpu", f"hydra.run.dir={folder}"]
    assert command(monkeypatch, *export) == 0
    lm = flm.load(folder, device="cpu", use_average=None)
    (answer,) = lm.generate(
        chat=[{"role": "user", "content": asked[1].question}], steps=64, solver="top_probability", temperature=0.0
    )
    assert answer.strip() == "```python\ndef negate(x):\n    return -x\n```"
    given = {"MODEL_PATH": folder, "DATA_DIR": tmp_path, "OUTPUT_DIR": tmp_path / "out", "NUM_STEPS": 64, "NEW_TOKENS": 60}
    options = ["code_eval.chat=true", "trainer.accelerator=cpu", "loader.eval_batch_size=4"]
    script(monkeypatch, tmp_path, "evaluate.sh", *options, **given)
    result = json.loads((tmp_path / "out" / "humaneval" / "code_eval.json").read_text())
    assert result["not_asked"] == {} and result["by_steps"]["64"]["pass_at"]["1"]["mean"] == 1
