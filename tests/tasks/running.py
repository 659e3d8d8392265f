"""Runs tasks in the test's own process: importing everything anew costs seconds each time."""

import random
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir

from flm.tasks.command_line import CONFIGS, main, prepared


def config_of(run_dir: Path, *overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", [prepared(override) for override in (f"run_dir={run_dir}", *overrides)])


def command(monkeypatch, *arguments: str) -> int:
    """Exit status of `python main.py ...`."""
    monkeypatch.setattr(sys, "argv", ["main.py", *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    return main()


def write_corpus(folder: Path, documents: int = 60, seed: int = 0) -> Path:
    """A folder of small texts in a made-up language with structure to learn; the same for the same seed."""
    rng = random.Random(seed)
    subjects, verbs, objects = ["the cat", "a dog", "one bird"], ["sees", "hears", "likes"], ["fish", "the sea", "rain"]
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(documents):
        sentences = [f"{rng.choice(subjects)} {rng.choice(verbs)} {rng.choice(objects)}." for _ in range(12)]
        (folder / f"{index:03d}.txt").write_text(" ".join(sentences), encoding="utf-8")
    return folder


def tiny(corpus: Path, *overrides: str) -> list[str]:
    """Overrides of a run of seconds on a corpus in characters."""
    return ["debug=tiny", "data=text", f"data.path={corpus}", "data.valid_fraction=0.2", "tokenizer=characters", *overrides]
