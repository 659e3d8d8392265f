"""From a folder of Qwen3 to pass@1: three stages by their scripts, each from what the one before saved."""

import json
import random
import shutil
import subprocess
import sys

import pytest
import torch
from qwen_line import TINY, json_lines, qwen_folder, script
from running import command
from scripts.launching import SCRIPTS

import flm
from flm.algos.algorithm import Batch
from flm.checkpoints.load import read_checkpoint
from flm.draws import Draws
from flm.samplers.canvas import Canvas

PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": "def double(x):\n",
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
HOLE = PROBLEM | {"task_id": "SingleLineInfilling/0", "prompt": "def double(x):\n    y = ", "canonical_solution": "2 * x",
                  "suffix": "\n    return y\n"}  # fmt: skip
# two sources a stage; what is null is left out
ONLY = {
    "pretrain": ["data.sources={dclm: {weight: 3}, arxiv: {weight: 1}, open_web_math: null, wikipedia: null, mathpile: null}"],
    "midtrain": ["data.sources={python: {weight: 2}, arxiv: {weight: 1}, annealing_code: null, wikipedia: null}"],
    "sft": ["data.prompt_growth_steps=2"],
}


def functions(count):
    """Each with a name, an argument and a number of its own, so that either half tells the other."""
    rng = random.Random(0)
    words = "wrap copy area last head mean flip join pick sort"
    words += " rest half near over past rate side cube norm rank mask fold span step"
    names, letters = rng.sample(words.split(), count), rng.sample("abcdefghijklmnopqrstuvwxyz", count)
    pairs = enumerate(zip(names, letters, strict=True))
    return [f"def {name}({x}): return {x} {rng.choice('+-*/%')} {index + 10}\n" for index, (name, x) in pairs]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """QWEN_PATH and DATA_DIR."""
    pytest.importorskip("datasets")
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("line")
    qwen = qwen_folder(root / "qwen3")
    for source, key in (("dclm", "text"), ("arxiv", "article"), ("python", "content")):
        json_lines(root / source / "a.jsonl", [{key: text * 3} for text in functions(24)])
    talks = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"it is {i}"}] for i in range(24)]
    json_lines(root / "ultrachat" / "a.jsonl", [{"messages": talk} for talk in talks])
    json_lines(root / "mbpp.jsonl", [])
    return qwen, root


@pytest.fixture(scope="module")
def line(data, tmp_path_factory):
    """The folder of each stage's run."""
    qwen, root = data
    folder = tmp_path_factory.mktemp("runs")
    begin = {"pretrain": {}, "midtrain": {"PRETRAIN_CHECKPOINT": "pretrain"}, "sft": {"MIDTRAIN_CHECKPOINT": "midtrain"}}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for stage, start in begin.items():
            given = {name: folder / before / "checkpoints" / "last.ckpt" for name, before in start.items()}
            given |= {"QWEN_PATH": qwen, "DATA_DIR": root, "OUTPUT_DIR": folder / stage}
            script(monkeypatch, folder, f"train_{stage}.sh", *TINY, *ONLY[stage], **given)
    return {stage: folder / stage for stage in begin}


def test_each_stage_begins_with_what_the_one_before_saved(line, data):
    from safetensors.torch import load_file

    checkpoints = {stage: read_checkpoint(folder / "checkpoints" / "last.ckpt") for stage, folder in line.items()}
    before = load_file(data[0] / "model.safetensors")
    for stage, checkpoint in checkpoints.items():
        assert checkpoint.step == 4
        if stage != "pretrain":
            exported = load_file(line[stage] / "start" / "model.safetensors")
            assert exported.keys() == before.keys() and all(torch.equal(exported[name], before[name]) for name in before)
        after = {name: checkpoint.state[f"backbone.network.{name}"] for name in before}
        assert any(not torch.equal(after[name], before[name]) for name in before)
        before = after


def test_an_interrupted_stage_ends_bit_identical(line, data, tmp_path, monkeypatch):
    given = {"QWEN_PATH": data[0], "DATA_DIR": data[1], "OUTPUT_DIR": tmp_path}
    schedule = ["lr_scheduler.total_steps=4", "algo.masking.steps=4"]
    script(monkeypatch, tmp_path, "train_pretrain.sh", *TINY, *ONLY["pretrain"], *schedule, "trainer.max_steps=3", **given)
    script(monkeypatch, tmp_path, "train_pretrain.sh", *TINY, *ONLY["pretrain"], *schedule, **given)
    ours, theirs = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (tmp_path, line["pretrain"]))
    assert ours.step == theirs.step == 4
    assert all(torch.equal(ours.state[name], theirs.state[name]) for name in theirs.state)


def test_generation_and_infilling_with_the_last_checkpoint(line):
    lm = flm.load(line["sft"] / "checkpoints" / "last.ckpt", device="cpu", use_average=False)
    prompt, suffix = "def f(x):\n    ", "\n    return y\n"
    (text,) = lm.generate(prompt=prompt, length=40, steps=4)
    assert text.startswith(prompt)
    (text,) = lm.generate(prompt=prompt, suffix=suffix, length=40, steps=4)
    assert text.startswith(prompt) and text.endswith(suffix)
    most = lm.algorithm.backbone.most_positions
    with pytest.raises(ValueError, match=f"a text of {most + 1:,} tokens, .*: at most {most:,} can be asked of it"):
        lm.generate(length=most + 1)


def test_inference_from_the_command_line(line):
    def run(*arguments, model=("--checkpoint", str(line["sft"])), **options):
        command = [sys.executable, str(SCRIPTS / "inference.py"), *model, "--device", "cpu", "--num_steps", "2"]
        return subprocess.run([*command, *arguments], capture_output=True, text=True, **options)

    done = run("--prefix", "def f(x):\n    ", "--suffix", "\n    return y", "--infill_length", "4", "--temperature", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def f(x):\n    ") and done.stdout.endswith("\n    return y\n")
    done = run("--interactive", "--max_length", "24", input="x = 1\n", model=[str(line["sft"])])
    assert done.returncode == 0 and "x = 1" in done.stdout, done.stderr
    done = run()
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: give --prompt")
    done = run("--prompt", "x", model=())
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: give one model")


@pytest.mark.parametrize(
    "problem, model, options",
    [(PROBLEM, "checkpoints/last.ckpt", []), (HOLE, "checkpoints/last.ckpt", []), (PROBLEM, "start", ["code_eval.chat=true"])],
    ids=["completion", "infilling", "chat with a folder"],
)
def test_code_evaluation(problem, model, options, line, tmp_path, monkeypatch):
    shutil.copy(json_lines(tmp_path / "one.jsonl", [problem]), tmp_path / "HumanEval.jsonl")
    import gzip

    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress((tmp_path / "HumanEval.jsonl").read_bytes()))
    given = {"MODEL_PATH": line["sft"] / model, "DATA_DIR": tmp_path, "OUTPUT_DIR": tmp_path / "out"}
    given |= {"NUM_STEPS": 2, "NEW_TOKENS": 16}
    options = [*options, "trainer.accelerator=cpu", "loader.eval_batch_size=2"]
    script(monkeypatch, tmp_path, "evaluate.sh", *options, **given)
    result = json.loads((tmp_path / "out" / "humaneval" / "code_eval.json").read_text())
    # a question takes more tokens than these models read; tests/qwen/test_chats.py puts one
    too_long = {"longer than model.length=96": 1} if "code_eval.chat=true" in options else {}
    assert result["problems"] == 1 and result["not_asked"] == too_long and set(result["by_steps"]) == {"2"}
    assert result["by_steps"]["2"]["pass_at"]["1"]["count"] == 1


def test_an_exported_folder_is_scored_and_answers_in_its_own_chat_template(line, tmp_path, monkeypatch):
    """The folder of a stage: its template came with the tokenizer of the Qwen3 that the first stage began with."""
    folder = line["sft"] / "start"
    lm = flm.load(folder, device="cpu", use_average=None)
    talk = [{"role": "user", "content": "12?"}]
    prompt = "<|im_start|>user\n12?<|im_end|>\n<|im_start|>assistant\n"
    (answer,) = lm.generate(chat=talk, length=90, steps=2, seed=3)
    (whole,) = lm.generate(prompt=prompt, length=90, steps=2, seed=3)
    assert whole.startswith(prompt + answer) and answer
    with pytest.raises(ValueError, match="leave out prompt"):
        lm.generate(chat=talk, prompt="x")
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(folder).apply_chat_template(talk, tokenize=False, add_generation_prompt=True) == prompt
    (tmp_path / "held_out.txt").write_text("def f(x):\n    return x\n" * 40, encoding="utf-8")
    data = [
        "eval.real_data=current",
        "data=text",
        f"data.path={tmp_path / 'held_out.txt'}",
        f"data.valid_path={tmp_path / 'held_out.txt'}",
    ]
    sizes = ["eval.max_examples=2", "eval.draws_per_example=2", "eval.pilot_draws=0", "loader.eval_batch_size=2"]
    out = tmp_path / "out"
    model = [f"eval.checkpoint_path={folder}", "eval.disable_ema=null", "trainer.accelerator=cpu", f"hydra.run.dir={out}"]
    assert command(monkeypatch, "mode=ppl_eval", *model, *data, *sizes) == 0
    scored = json.loads((out / "likelihood.json").read_text())["likelihood"]["corpora"]["data"]["variants"]["model"]
    assert 3 < scored["nats_per_token"] < 12


@pytest.mark.slow
def test_a_tiny_model_overfitted_on_functions_infills_them(data):
    """Left, middle and right; every hole to the letter."""
    from flm.algos.dfm import DFM
    from flm.data.pretrained_tokenizer import HuggingFaceTokenizer
    from flm.qwen.backbone import QwenBackbone, architecture_of

    tokenizer = HuggingFaceTokenizer(data[0]).build(lambda: iter(()))
    texts = [tokenizer.encode(text) for text in functions(24)]
    length = max(map(len, texts)) + 1
    shape = architecture_of(data[0]) | {"hidden_size": 128, "intermediate_size": 256}
    torch.manual_seed(0)

    def backbone(vocab_size):
        return QwenBackbone(vocab_size, length, shape)

    algorithm = DFM(backbone, tokenizer.vocab_size, length)
    tokens = torch.tensor([ids + [tokenizer.eos_id] * (length - len(ids)) for ids in texts])
    several = tokens.repeat(2, 1)  # masks of each at a time
    batch = Batch(several, torch.ones(several.shape))
    steps = 800
    optimizer = torch.optim.AdamW(algorithm.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    algorithm.train()
    for step in range(steps):
        loss = algorithm.loss(batch, Draws(0, step)).total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(algorithm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    algorithm.eval()
    size = 8
    for name, start in (("left", 0), ("middle", 8), ("right", None)):
        editable = torch.zeros_like(tokens, dtype=torch.bool)
        for row, ids in enumerate(texts):
            begin = len(ids) - size if start is None else start
            editable[row, begin : begin + size] = True
        filled = algorithm.generate(
            Canvas(tokens.masked_fill(editable, 0), editable),
            8,
            torch.Generator().manual_seed(0),
            solver="top_probability",
            top_k=1,
        )
        wrong = (filled != tokens).any(1).nonzero()[:, 0].tolist()
        assert not wrong, (name, [(tokenizer.decode(filled[i]), tokenizer.decode(tokens[i])) for i in wrong[:3]])
