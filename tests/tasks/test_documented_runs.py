"""Every command of README and docs runs, at debug size and in the order of its page, or is listed here with the reason."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import ClassVar

import pytest
import shrunk
import torch
from documented import ROOT, Command, commands_of, files_of, pages, sessions_of
from published.published_layouts import flm_v1, fmlm_v2, mdlm, tokenizer_folder
from running import command as run_task
from scripts.launching import run_script
from scripts.stand_ins import write_lm1b, write_openwebtext

from flm import text_commands
from flm.__main__ import main, mode_names

# Pages that other tests run (tests/scripts/test_sources_page.py, tests/golf/test_golf_tasks.py), and one made from docstrings.
LEFT_OUT = {"docs/sources.md", "docs/golf.md", "docs/files.md"}
# What does not run here: part of the line, and why, or the test that runs it.
NOT_RUN = {
    "pip install": "installs: tests/test_installed.py does from the wheel",
    "bash scripts/test.sh": "runs these tests",
    "python -m pytest tests/": "tests, which the suite runs",
    "python scripts/describe_": "rewrites a page: its test makes it anew and compares",
    "bash scripts/gpu_check.sh": "needs a GPU; tests/scripts/test_gpu_check.py runs its sections",
    "python scripts/gpu_check.py": "minutes: tests/scripts/test_gpu_check.py runs its sections",
    "hydra/launcher=submitit_slurm": "needs SLURM; tests/scripts/test_sweeps.py composes it",
    "DIT_USE_COMPILE": "compiles for minutes: tests/tasks/test_compiled.py",
    "debug=profile": "a profile of minutes: its config is checked in test_documented_commands.py",
    "data=wmt14_de_en": "data of the hub: tests/conditional/test_hub_pairs.py",
    "OWNER/REPO": "a hub: tests/published/test_published_behaviour.py asks one on this machine",
    "bash scripts/train_pretrain.sh": "tests/qwen/test_qwen_line.py runs the stages",
    "bash scripts/train_midtrain.sh": "tests/qwen/test_qwen_line.py",
    "bash scripts/train_sft.sh": "tests/qwen/test_qwen_line.py, and test_chat_line.py to the answers",
    "experiment=qwen3_sft_lora": "needs peft; tests/qwen/test_lora.py",
    "flm adapter": "needs peft; tests/qwen/test_adapters.py",
    "bash scripts/evaluate.sh": "tests/qwen/test_qwen_line.py",
    "python scripts/inference.py": "tests/qwen/test_qwen_line.py",
    "bash scripts/train_lm1b": "tests/scripts/test_recipes_run.py runs the launchers, stage upon stage",
    "bash scripts/gen_ppl_lm1b": "tests/scripts/test_recipes_run.py",
    "mode=code_eval eval.checkpoint_path": "tests/qwen/test_qwen_line.py evaluates a model that writes code",
    "mypackage": "a package of the reader's own: tests/puzzles",
    "hydra.sweep.dir": "tests/scripts/test_sweeps.py runs a sweep",
    "tests/likelihood/likelihood_gap.py": "an experiment of minutes",
    "data=maze": "draws mazes for minutes; tests/puzzles trains on small ones",
    "flm demo lm1b_fmlm.ckpt": "its tokenizer is on the hub; flm generate opens such a file here",
    "python scripts/load_test.py": "asks the server that flm serve is, at fewer requests",
    "flm join FOLDER FILE": "a checkpoint in parts: tests/split_checkpoints",
    "flm serve DIR": "as flm serve, with a model",
    "flm generate --wing mine MODEL": "a package of the reader's own: tests/test_fifth_wing.py",
    "import flm, lm_eval": "tests/serving/test_lm_eval_adapter.py",
}
# Scripts that end in a report: what they are asked for at this size. Their calls of main.py run in this process.
SCRIPTS = {
    "compare.sh": {"SHARE": "1", "EVALUATION": "eval.max_examples=4", "SEEDS": "1"},
    "few_step.sh": {"BUDGET": "1", "SEEDS": "1"},
    "ablate_reading.sh": {"TIME": "1", "VOCABULARIES": "300", "WIDTHS": "16", "ROWS": "evidence_near evidence_near_map"},
}
PUBLISHED = ("lm1b_flm.ckpt", "lm1b_fmlm.ckpt", "mdlm.ckpt")  # made here, small, in the layout of their authors
# What a mode needs where a sentence names it alone.
ALONE = {mode: ["eval.checkpoint_path=RUN"] for mode in ("sample", "frontier")} | {"report": ["report.inputs=[RUN]"]}
ALONE["import"] = ["eval.checkpoint_path=lm1b_flm.ckpt"]
TOO_LARGE = re.compile(r"/(data/texts|data|models|runs|benchmarks)\b")


def reason(line: str) -> str | None:
    return next((why for part, why in NOT_RUN.items() if part in line), None)


def of_page(page: Path) -> list[Command]:
    """Those to run: each once."""
    found = {}
    for command in commands_of(page):
        if reason(command.line) is None and "|" not in command.line:
            found.setdefault((command.program, command.arguments, command.variables), command)
    return list(found.values())


PAGES = [page for page in pages() if str(page.relative_to(ROOT)) not in LEFT_OUT]


def test_nothing_is_listed_that_no_page_has_and_most_runs():
    lines = [command.line for page in PAGES for command in commands_of(page)]
    lines += [session for page in PAGES for session in sessions_of(page)]
    assert not [part for part in NOT_RUN if not any(part in line for line in lines)]
    runs = sum(len(of_page(page)) for page in PAGES)
    assert runs >= 90, "commands that run"
    assert len({line for line in lines if reason(line)}) <= runs / 2


class World:
    """A folder with the tree's scripts and what the commands of a page name.

    Attributes:
        names: what stands for a word of the docs.
    """

    done: ClassVar[set[Hashable]] = set()  # on any page: what leaves nothing that a later command reads

    def __init__(self, folder: Path, page: Path, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        for name in ("main.py", "scripts", "configs", "flm", "examples", "requirements.txt", "tests"):
            (folder / name).symlink_to(ROOT / name)
        run = str(folder / "RUN")
        self.names = dict.fromkeys(("CKPT", "MODEL", "A.ckpt", "B.ckpt", "x.ckpt", "...", "RUN/checkpoints/best.ckpt"), run)
        self.words = str(folder / "words")
        if page.name == "puzzles.md":
            self.names["CKPT"] = str(folder / "SOLVER")
        elif page.name == "conditional.md":
            self.names["CKPT"] = "outputs/reverse"
        elif page.name == "index.md":
            self.names["DIR"] = run
        elif page.name == "infill.md":
            self.names["outputs/words"] = run

    def run(self, command: Command) -> int:
        variables = {name: self.here(value) for name, value in command.variables}
        words = [self.here(word) for word in command.arguments]
        if command.program == "bash":
            return self.script(Path(words[0]).name, words[1:], variables)
        if command.program == "python":
            return subprocess.run(["bash", "-c", command.line.replace("python", sys.executable, 1)], timeout=300).returncode
        if "PYTHONPATH" in variables:
            self.monkeypatch.syspath_prepend(str(self.folder / variables["PYTHONPATH"]))
        if command.program == "main.py":
            return self.task(words)
        return self.flm(words)

    def here(self, word: str) -> str:
        """With small files in place of those that it names."""
        if word == "experiment=...":
            return "experiment=pydoc_flm"
        key, equals, value = word.rpartition("=")
        if value in self.names:
            return f"{key}{equals}{self.names[value]}"
        word = word.replace("[STUDY]", f"[{self.folder}/outputs]")  # where the study went without a folder of its own
        word = TOO_LARGE.sub(lambda match: f"{self.folder}/{match[1].replace('/', '_')}", word)
        for name in ("A.ckpt", "B.ckpt"):
            word = word.replace(f" {name}", f" {self.names[name]}")
        return word

    def task(self, words: list[str]) -> int:
        if "--help" in words:
            return run_task(self.monkeypatch, *words)
        return run_task(self.monkeypatch, *self.small(words))

    def small(self, words: list[str]) -> list[str]:
        """Overrides at debug size, on the files that are here."""
        words = [self.here(word) for word in words if not re.fullmatch(r"\[.*\]|\.\.\.", word)]
        if any(word.partition("=")[2] in PUBLISHED for word in words):
            words.append(f"eval.tokenizer_name_or_path={self.words}")
        if "eval.checkpoint_path=outputs/reverse" in words:
            words.append("eval.disable_ema=true")  # it was trained without an average
        named = any(word.startswith("data.cache_dir=") for word in words)
        if not named and any(re.match("experiment=(lm1b|owt)", word) for word in words):
            words.append(f"data.cache_dir={self.folder / 'data_texts'}")
        return shrunk.overrides(words)

    def flm(self, words: list[str]) -> int:
        command, *rest = words
        if command in ("serve", "demo"):
            talk = command == "demo" and "--web" not in rest
            return self.once(tuple(words), lambda: self.demo(rest) if talk else self.served(words))
        if command in text_commands.COMMANDS:
            if rest and rest[0] in PUBLISHED:
                rest += ["--published", f"tokenizer_name_or_path={self.words}"]
            needed = {"infill": ["a [2]"], "nll": ["a cat"], "generate": []}[command]
            return main([command, *shrunk.text_command(rest), *([] if len(rest) > 1 else needed)])
        if command.startswith("-") or "--help" in words:
            return main(words)
        mode = mode_names()[command]
        small = self.small([f"mode={mode}", *(rest or ALONE.get(command, []))])
        return main([command, *(word for word in small if word != f"mode={mode}")])

    def demo(self, words: list[str]) -> int:
        command = [sys.executable, "-m", "flm", "demo", *words, "--steps", "2"]
        typed = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        typed.communicate("The [3].\n\n/quit\n", timeout=120)
        return typed.returncode

    def once(self, what: Hashable, run: Callable[[], int]) -> int:
        """Its status; 0 where it ended well on an earlier page."""
        status = 0 if what in self.done else run()
        if status == 0:
            self.done.add(what)
        return status

    def served(self, words: list[str]) -> int:
        """Starts, answers, and ends when it is told to."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        server = subprocess.Popen([sys.executable, "-m", "flm", *words, "--port", port], start_new_session=True)
        try:
            for _ in range(1200):
                assert server.poll() is None, "the server ended"
                try:
                    path = "/" if "demo" in words else "/health"
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                        assert answer.status == 200
                    break
                except OSError:
                    time.sleep(0.1)
            if words == ["serve"]:
                load = [sys.executable, "scripts/load_test.py", "--url", f"http://127.0.0.1:{port}", "--requests", "2"]
                assert subprocess.run([*load, "--clients", "2", "--steps", "1"], timeout=120).returncode == 0
            return 0
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)

    def script(self, name: str, words: list[str], variables: dict[str, str]) -> int:
        """Its calls of main.py as it makes them, run here."""
        if name not in SCRIPTS and "OUT" in variables:
            return self.called(name, words, variables)
        given = {key: value for key, value in (variables | SCRIPTS.get(name, {})).items() if key != "OUT"}
        return self.once((name, *words, *sorted(given.items())), lambda: self.called(name, words, variables))

    def called(self, name: str, words: list[str], variables: dict[str, str]) -> int:
        out = self.folder / "outputs" / f"{name}-{len(os.listdir(self.folder))}-{time.monotonic_ns()}"
        variables = {"OUT": str(out)} | variables | SCRIPTS.get(name, {})
        variables["OUT"] = str(self.folder / variables["OUT"])  # scripts go to the tree that they stand in
        done, calls = run_script(name, self.folder / "stub", *words, **variables)
        assert done.returncode == 0 and calls, done.stderr
        return max(self.task(call) for call in calls)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A trained model, a corpus, published files: made once, copied for each page."""
    folder = tmp_path_factory.mktemp("prepared")
    shrunk.write_corpus(folder / "FOLDER")
    write_lm1b(folder / "data_texts")
    write_openwebtext(folder / "data_texts")
    shrunk.write_problems(folder / "HumanEval.jsonl.gz", folder / "mbpp.jsonl")
    for name, (content, *_) in zip(PUBLISHED, (flm_v1(), fmlm_v2(), mdlm()), strict=True):
        torch.save(content, folder / name)
    tokenizer_folder(folder / "words")
    with pytest.MonkeyPatch.context() as patch:
        for name, experiment in (("RUN", "pydoc_flm"), ("SOLVER", "sudoku4_flm")):
            patch.chdir(folder)
            assert run_task(patch, *shrunk.overrides([f"experiment={experiment}", f"hydra.run.dir={folder / name}"])) == 0
        for name in ("a", "b"):
            solved = ["mode=solve_eval", f"eval.checkpoint_path={folder / 'SOLVER'}", "sampling.steps=[1]"]
            assert run_task(patch, *shrunk.overrides([*solved, f"hydra.run.dir={folder / 'outputs' / name}"])) == 0
    return folder


@pytest.fixture(autouse=True)
def environment():
    """DDP of one process and what commands export leave traces."""
    before = dict(os.environ)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_the_commands_of_a_page_run(page, prepared, tmp_path, monkeypatch, capfd):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    for other in ("DOCS", "NOVELS"):
        shutil.copytree(prepared / "FOLDER", tmp_path / other)
    if page.name == "clock.md":
        shutil.copytree(prepared / "data_texts", tmp_path / "DIR")
    for name, text in files_of(page).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLM_VENV", "none")
    world, failed = World(tmp_path, page, monkeypatch), []
    for command in of_page(page):
        begun = time.monotonic()
        try:
            status = world.run(command)
        except (Exception, SystemExit) as error:
            status = f"{type(error).__name__}: {error}"
        said = capfd.readouterr()
        time.sleep(max(0, begun + 1.01 - time.monotonic()))  # folders of runs are named by the second, processes start slower
        if status not in (0, "SystemExit: 0"):
            failed.append(f"{command.line}\n    {status}: {said.err.strip()[-400:]}")
        with capfd.disabled():
            print(f"{command.line[:100]} ({time.monotonic() - begun:.0f} s)", flush=True)
    for session in sessions_of(page):
        if reason(session) is None and "flm.load" in session:
            for old, new in (('"RUN"', f'"{tmp_path}/RUN"'), ("steps=16", "steps=2"), ("DIR", f'"{tmp_path}/exported"')):
                session = session.replace(old, new)
            exec(compile(session, str(page), "exec"), {})
    assert not failed, "\n".join(failed)
