"""Distils a flow model into its flow map, which writes a whole 4x4 Sudoku grid in one network evaluation.

python examples/distil.py                                       # about three minutes of one CPU core
python examples/distil.py trainer.max_steps=20                  # seconds: neither learns anything
"""

import sys
from pathlib import Path

import flm
from flm.__main__ import main
from flm.puzzles.sudoku_rules import SudokuRules

OUT = Path("outputs/examples/distil")


def train(name: str, *overrides: str) -> flm.LanguageModel:
    folder = OUT / name
    if main(["train", f"experiment=sudoku4_{name}", f"hydra.run.dir={folder}", *overrides]):
        sys.exit(1)
    return flm.load(folder)


def valid(lm: flm.LanguageModel, steps: int, count: int = 250) -> float:
    """The share of written grids in which each row, column and box holds every symbol once."""
    rules = SudokuRules(4)
    return sum(rules.valid(grid) for grid in lm.generate(n=count, steps=steps, batch_size=count)) / count


if __name__ == "__main__":
    teacher = train("flm", *sys.argv[1:])
    student = train("fmlm", f"algo.teacher_path={OUT / 'flm'}", *sys.argv[1:])
    print("valid grids     1 step  4 steps  16 steps")
    for name, lm in (("flow model", teacher), ("flow map", student)):
        print(f"{name:14}" + "".join(f"{valid(lm, steps):9.1%}" for steps in (1, 4, 16)))
