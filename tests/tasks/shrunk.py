"""A documented command at debug size, and small files in place of those that it names."""

import itertools
import json
import re
from pathlib import Path

SIZES = ("loader.global_batch_size", "loader.batch_size", "loader.eval_batch_size", "trainer.devices", "trainer.num_nodes")
SIZES += (
    "trainer.max_steps",
    "lr_scheduler.warmup_steps",
    "trainer.val_check_interval",
    "trainer.max_time",
    "trainer.accelerator",
    "eval.max_examples",
)
SIZES += ("eval.pilot_draws", "eval.draws_per_example", "strategy", "sampling.num_sample_batches", "benchmark.vocab_size")
SIZES += ("eval.gen_ppl_eval_model_name_or_path",)
FEWER = re.compile(r"((?:sampling|frontier)\.(?:steps|temperature)|benchmark\.against)=\[(.*)\]")
EVALUATIONS = ["eval.max_examples=4", "eval.pilot_draws=0", "eval.draws_per_example=1", "sampling.num_sample_batches=1"]
EVALUATIONS += ["loader.eval_batch_size=2", "trainer.accelerator=cpu", "trainer.devices=1"]
TRAINING = ["trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.accelerator=cpu", "trainer.devices=1"]
TRAINING += ["callbacks.checkpoint_every_n_steps.every_n_train_steps=2", "callbacks.progress=null"]
BENCHMARK = [
    "benchmark.vocab_size=300",
    "benchmark.steps=1",
    "benchmark.warm_up=1",
    "benchmark.rounds=1",
    "model.compile=false",
]
BENCHMARK += ["benchmark.sampling_steps=2", "benchmark.samplings=1", "benchmark.at_least={}", "benchmark.at_most={}"]
BENCHMARK += ["model.length=16", "loader.global_batch_size=2"]
GOLF = ["golf_eval.max_tokens=64", "golf_eval.window=16", "golf_eval.stride=8", "golf_eval.chunk_tokens=32"]
GOLF += ["golf_eval.test_time_training.epochs=1", "golf_eval.test_time_training.batch_sequences=2"]
OF_MODE = {
    "benchmark": BENCHMARK,
    "solve_eval": [*EVALUATIONS, "solve_eval.puzzles=4", "solve_eval.written=4"],
    "golf_eval": [*EVALUATIONS, *GOLF],
    "artifact": [*EVALUATIONS, *GOLF],
    "flow_lm_eval": [*EVALUATIONS, "flow_lm_eval.points=2", "flow_lm_eval.ends=[0.5]"],
    "conditional_eval": [*EVALUATIONS, "conditional_eval.limit=4"],
    "code_eval": [*EVALUATIONS, "code_eval.limit=2", "code_eval.new_tokens=4", "code_eval.workers=1"],
}
OF_RECIPE = {"owt": ["data.valid_documents=30"], "sudoku": ["model.hidden_size=16"]}
OF_RECIPE["pydoc_kl_flow_study"] = ["callbacks.sample=null", "callbacks.generation=null"]  # debug=tiny gives them sizes


def overrides(words: list[str]) -> list[str]:
    """Of `python main.py`: fewer of everything, whatever the command says of counts."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    experiment = given.get("experiment", "")
    mode = "benchmark" if experiment == "benchmark_gpu" else given.get("mode", "train")
    kept = [word for word in words if word.partition("=")[0] not in SIZES]
    kept = [FEWER.sub(lambda match: f"{match[1]}=[{_fewer(match[1], match[2])}]", word) for word in kept]
    if "debug" not in given:
        kept.append("debug=tiny")
    if mode == "train":
        kept += TRAINING
        kept += [more for recipe, options in OF_RECIPE.items() if experiment.startswith(recipe) for more in options]
        return [word for word in kept if word != "debug=overfit"]
    if mode == "frontier":
        own = [] if "frontier.steps" in given else ["frontier.steps=[1]"]
        return [*kept, *EVALUATIONS, *own]
    if mode == "benchmark" and ("experiment" in given or "benchmark.against" in given):
        kept.append("benchmark.twins=false")  # a process each, which the plain command has started once
    plain = ("report", "side_by_side", "export", "import")
    return [*kept, *OF_MODE.get(mode, [] if mode in plain else EVALUATIONS)]


def _fewer(key: str, values: str) -> str:
    items = [item.strip() for item in values.split(",")]
    if key.endswith(".steps"):
        items = [str(min(int(item), 3 + place)) for place, item in enumerate(items[:2])]
    return ",".join(dict.fromkeys(items[: 1 if key.endswith("against") else 2]))


def text_command(words: list[str]) -> list[str]:
    """Of `flm generate|infill|nll`."""
    counts = {"-n": "1", "--steps": "2", "--draws": "1"}
    for flag, most in counts.items():
        if flag in words:
            words = [*words[: words.index(flag) + 1], most, *words[words.index(flag) + 2 :]]
    return words


def write_corpus(folder: Path) -> None:
    """Documents of a made-up language."""
    folder.mkdir(parents=True, exist_ok=True)
    sentences = [
        " ".join(words) + "." for words in itertools.product(("the cat", "a dog"), ("sees", "hears"), ("fish", "rain"))
    ]
    for number in range(30):
        (folder / f"{number}.txt").write_text(" ".join(sentences[(number * 3 + i) % 8] for i in range(14)), encoding="utf-8")


def write_problems(human_eval: Path, mbpp: Path) -> None:
    """Two problems in the format of each benchmark."""
    import gzip

    rows = []
    for number, (name, body) in enumerate((("one", "return 1"), ("two", "return 2"))):
        check = f"def check(candidate):\n    assert candidate() == {number + 1}\n"
        prompt = f'def {name}():\n    """The number {name}."""\n'
        rows.append(
            {"task_id": f"HumanEval/{number}", "prompt": prompt, "entry_point": name, "canonical_solution": f"    {body}\n"}
        )
        rows[-1]["test"] = check
    human_eval.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    rows = []
    for number in (11, 12):
        code = f"def answer():\n    first = {number}\n    return first\n"
        tests = {"test_list": [f"assert answer() == {number}"], "test_setup_code": "", "challenge_test_list": []}
        rows.append({"task_id": number, "text": f"Write a function that returns {number}.", "code": code} | tests)
    mbpp.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
