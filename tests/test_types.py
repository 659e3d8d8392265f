"""The public API by mypy's strict rules, from the inside and from the outside."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = (
    "flm/__init__.py",
    "flm/language_model.py",
    "flm/algos/algorithm.py",
    "flm/checkpoints/hub.py",
    "flm/checkpoints/model_file.py",
    "flm/data/tokenizers.py",
    "flm/likelihood/held_out.py",
    "flm/samplers/canvas.py",
)
# strict mypy refuses an ignore that ignores nothing: each of these must be an error to it
USER = """
from collections.abc import Sequence

import flm

lm = flm.load("builtin:text", device="cpu")
texts: Sequence[str] = lm.generate(n=2, steps=8, prompt="The ", temperature=0.9)
ids: list[int] = lm.generate(prompt=["The ", "A "])[0].ids
filled: Sequence[str] = lm.infill("The [8].", seed=1, progress=True)
nats: float = float(lm.nll("text"))
length: int = lm.length
name: str = lm.tokenizer.decode([1])
wrong: int = lm.generate()  # type: ignore[assignment]
lm.generate(n="two")  # type: ignore[arg-type]
lm.genrate()  # type: ignore[attr-defined]
flm.load(source=3)  # type: ignore[arg-type]
"""


def mypy(folder: Path, *arguments: str) -> str:
    if find_spec("mypy") is None:
        pytest.skip("mypy is not installed (pip install -e '.[dev]')")
    options = ["--strict", "--follow-imports=silent", "--no-error-summary", f"--cache-dir={folder / 'cache'}"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mypy")


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "flm" / "py.typed").is_file()


def test_what_users_meet_is_typed(folder):
    """Both in one run: what is slow is reading torch's types."""
    program = folder / "user.py"
    program.write_text(USER, encoding="utf-8")
    assert mypy(folder, *PUBLIC, str(program)) == ""
