"""Every file of examples/ runs, at debug size, and stays short."""

import json
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SHORT = ["trainer.max_steps=10", "lr_scheduler.warmup_steps=2"]
RUNS = {
    "train_tiny.py": (["debug=tiny", "trainer.max_steps=10", "trainer.val_check_interval=10"], "continued:    The "),
    "generate_and_infill.py": ([], "tau 0."),
    "distil.py": ([*SHORT, "trainer.val_check_interval=10"], "flow map"),
    "own_algorithm.py": ([*SHORT, "trainer.val_check_interval=10"], "of 100 grids are valid"),
    "solve_a_puzzle.py": (["1......4..2..3.."], "4 evaluations: "),
}


def test_all_are_here_and_short():
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == set(RUNS)
    for name in scripts:
        assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 60
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"({path.name})" in listed for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))


@pytest.mark.parametrize("name", RUNS)
def test_script(name, tmp_path, monkeypatch, capsys):
    arguments, says = RUNS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert says in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} <= {"outputs"}


def test_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    book = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))
    assert book["nbformat"] == 4
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in book["cells"])  # outputs would be of somebody's machine
    names: dict = {}
    for number, source in enumerate(cells):
        exec(compile(source, f"cell {number}", "exec"), names)
    assert names["texts"] and all(text.startswith("The ") for text in names["continued"])
    assert names["film"].frames and len(names["share"]) == 3
