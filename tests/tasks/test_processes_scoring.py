"""Likelihoods, responses and the track's score from two processes are those of one, to the last digit."""

import json
import os

import pytest
from code_files import write
from running import config_of, tiny, write_corpus
from two_processes import free_ports, run_two

from flm.conditional.conditional_eval import conditional_eval
from flm.golf.golf_eval import golf_eval
from flm.tasks.ppl_eval import ppl_eval
from flm.tasks.train import train

PAIRS = [{"prompt": f"say {word}", "response": word * (1 + len(word) % 3)} for word in "a ee ff hh bb ccc dd e ff g".split()]
LEFT_OUT = ("config", "command", "processes", "checkpoint", "path")
# by mode: the task, its file, and options under which there is an odd number of pieces of work
TASKS = {
    "ppl_eval": (ppl_eval, "likelihood.json", ["loader.eval_batch_size=4", "eval.pilot_draws=32", "eval.draws_per_example=3"]),
    "conditional_eval": (conditional_eval, "conditional_eval.json", ["loader.eval_batch_size=4", "sampling.steps=[1,3]"]),
    "golf_eval": (
        golf_eval,
        "golf_eval.json",
        # weights that move, and chunks of several batches
        ["golf_eval.chunk_tokens=96", "golf_eval.stride=8", "golf_eval.max_tokens=400", "loader.eval_batch_size=5"]
        + ["golf_eval.test_time_training.lr=0.05", "golf_eval.test_time_training.freeze_blocks=0"],
    ),
}


def evaluate(folder, checkpoints, ports=None):
    """Whether each task returned anything."""
    returned = []
    for mode, (task, _, options) in TASKS.items():
        if ports:
            os.environ["MASTER_PORT"] = str(ports.pop())
        config = config_of(folder / mode, f"mode={mode}", f"eval.checkpoint_path={checkpoints[mode]}", *options)
        returned.append(bool(task(config)))
    return returned


def work(rank, folder, checkpoints, ports):
    (folder / f"{rank}.json").write_text(json.dumps(evaluate(folder / str(rank), checkpoints, ports)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder with the files of the two processes (0, 1) and of one alone."""
    folder = tmp_path_factory.mktemp("scoring")
    corpus = write_corpus(tmp_path_factory.mktemp("corpus"), documents=20)
    pairs = write(folder / "pairs.jsonl", PAIRS)
    short = ["logger=none", "trainer.max_steps=10", "callbacks.generation=null"]
    of_pairs = ["data=pairs", f"data.path={pairs}", f"data.valid_path={pairs}", "tokenizer=bytes", "model.length=24"]
    train(config_of(folder / "pairs", "debug=tiny", *of_pairs, *short))
    train(config_of(folder / "text", *tiny(corpus, "algo=ar", *short)))
    checkpoints = {mode: folder / ("text" if mode == "golf_eval" else "pairs") for mode in TASKS}
    assert evaluate(folder / "alone", checkpoints) == [True, True, True]
    run_two(work, folder, checkpoints, free_ports(len(TASKS)))
    return folder


def numbers(value):
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items() if key not in LEFT_OUT}
    return [numbers(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("mode", TASKS)
def test_two_processes_say_what_one_says(runs, mode):
    alone, pair = (json.loads((runs / who / mode / TASKS[mode][1]).read_text()) for who in ("alone", "0"))
    assert numbers(pair) == numbers(alone) and (alone["processes"], pair["processes"]) == (1, 2)


def test_the_first_one_writes(runs):
    assert [json.loads((runs / f"{rank}.json").read_text()) for rank in (0, 1)] == [[True] * 3, [False] * 3]
    written = {file.name for file in (runs / "1").rglob("*") if "data" not in file.relative_to(runs / "1").parts}
    assert not written & {name for _, name, _ in TASKS.values()} and not any("responses" in name for name in written)
    responses = "conditional_eval/responses-3.jsonl"
    assert (runs / "0" / responses).read_text() == (runs / "alone" / responses).read_text()
