"""A model file that describes 10^9 blocks or a width of 65,536: one line wherever one is taken, soon and in little memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import tiny, write_corpus

import flm
from flm.checkpoints import files
from flm.checkpoints.description import KEY, Description
from flm.checkpoints.load import load_algorithm
from flm.export.hf_folder import write_folder
from flm.export.model_card import model_card
from flm.golf.packing import pack

HUGE = {"blocks": ("num_blocks", 10**9), "width": ("hidden_size", 65_536)}
# The address space over what Python with this project takes; processor seconds are those of each command.
CHILD = """
import contextlib, io, json, os, resource, sys, time
import uvicorn, safetensors.torch
import flm, flm.golf.packed, flm.serving.app, flm.serving.engine
from flm.__main__ import main as command
from flm.tasks.command_line import main
flm.load(sys.argv[1])  # what is imported on the way
size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
found = []
for words in json.load(sys.stdin):
    said, start = io.StringIO(), time.process_time()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            if words[0] == "flm":
                command(words[1:])
            else:
                sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["main.py", *words], "0"
                main()
        except BaseException as error:
            print(f"TRACEBACK {type(error).__name__}: {error}", file=said)
    errors = [line for line in said.getvalue().splitlines() if line.startswith(("error: ", "TRACEBACK"))]
    found.append((errors, time.process_time() - start))
print("FOUND" + json.dumps(found))
"""


def described(content: dict, key: str, value: int) -> dict:
    description = content[KEY]
    model = description["config"]["model"] | {key: value}
    return content | {KEY: description | {"config": description["config"] | {"model": model}}}


def artifact(path: Path, key: str, value: int, good: Path) -> Path:
    algorithm, source = load_algorithm(good)
    config = source.config | {"model": source.config["model"] | {key: value}}
    description = Description(config, source.tokenizer, algorithm.vocab_size, algorithm.length, source.step)
    path.write_bytes(pack(algorithm, description, None).content)
    return path


def folder(path: Path, key: str, value: int, good: Path) -> Path:
    algorithm, source = load_algorithm(good)
    write_folder(path, algorithm, source, model_card("x", algorithm, source))
    config = path / "config.json"
    content = json.loads(config.read_text())
    content["flm"]["config"]["model"][key] = value
    config.write_text(json.dumps(content))
    return path


def places(name: str, good: Path, corpus: Path, root: Path) -> dict[str, list[str]]:
    """Commands by the place that they name the file in."""
    run = [f"hydra.run.dir={root / 'out'}", "hydra.output_subdir=null", "trainer.accelerator=cpu"]
    train = [*tiny(corpus, "logger=none"), *run]
    return {
        "sample_eval": ["mode=sample_eval", f"eval.checkpoint_path={name}", *run],
        "ppl_eval": ["mode=ppl_eval", f"eval.checkpoint_path={name}", *run],
        "frontier": ["mode=frontier", f"frontier.checkpoints={{a: {name}}}", *run],
        "judge": [
            "mode=sample_eval", f"eval.checkpoint_path={good}", "eval.scorer=ar", f"eval.scorer_checkpoint_path={name}", *run
        ],
        "export": ["mode=export", f"eval.checkpoint_path={name}", *run],
        "artifact": ["mode=artifact", f"eval.checkpoint_path={name}", *run],
        "golf_eval": ["mode=golf_eval", f"eval.checkpoint_path={name}", *run],
        "solve_eval": ["mode=solve_eval", f"eval.checkpoint_path={name}", *run],
        "import": ["mode=import", f"eval.checkpoint_path={name}", *run],
        "teacher": ["algo=fmlm", f"algo.teacher_path={name}", *train],
        "resume": [f"checkpointing.resume_ckpt_path={name}", "checkpointing.allow_changes=[model,algo,data,tokenizer]", *train],
        "generate": ["flm", "generate", name, "--device", "cpu"],
        "nll": ["flm", "nll", name, "text", "--device", "cpu"],
        "serve": ["flm", "serve", name, "--device", "cpu", "--port", "0"],
        "demo": ["flm", "demo", name, "--device", "cpu"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """By kind of file, size and place: the errors, and processor seconds."""
    from running import config_of

    from flm.tasks.train import train

    root = tmp_path_factory.mktemp("huge")
    corpus = write_corpus(root / "corpus", documents=10)
    train(config_of(root / "run", *tiny(corpus, "algo=ar", "trainer.max_steps=1", "logger=none", "callbacks.generation=null")))
    good = root / "run" / "checkpoints" / "last.ckpt"
    commands, keys = [], []
    for size, (key, value) in HUGE.items():
        torch.save(described(files.load(good), key, value), root / f"{size}.ckpt")
        made = {
            "checkpoint": root / f"{size}.ckpt",
            "folder": folder(root / size, key, value, good),
            "artifact": artifact(root / f"{size}.flmpack", key, value, good),
        }
        for kind, path in made.items():
            for place, words in places(str(path), good, corpus, root).items():
                if (kind, place) not in (
                    ("folder", "import"),
                    ("artifact", "import"),
                    ("folder", "resume"),
                    ("artifact", "resume"),
                ):
                    keys.append((kind, size, place, path.name))
                    commands.append(words)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(good)],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(Path(flm.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND")] or [""]
    assert line, done.stderr[-2000:]
    return dict(zip(keys, json.loads(line.removeprefix("FOUND")), strict=True))


def test_a_huge_description_is_one_line_in_every_place(said):
    wrong = {}
    for (kind, size, place, name), (errors, seconds) in said.items():
        if len(errors) != 1 or not errors[0].startswith("error: ") or name not in errors[0] or seconds > 3:
            wrong[kind, size, place] = (errors, seconds)
    print(f"{len(said)} commands, at most {max(seconds for _, seconds in said.values()):.2f} s")
    assert not wrong, "\n".join(f"{key}: {value}" for key, value in wrong.items())
