"""Fills the holes of a puzzle, all at once, with the model in the box; a few noises make a few tries.

python examples/solve_a_puzzle.py
python examples/solve_a_puzzle.py 1......4..2..3..     # your own: 16 cells row by row, . is a hole
"""

import sys

import flm
from flm.puzzles.sudoku_rules import SudokuRules

puzzle = sys.argv[1] if len(sys.argv) > 1 else "1......4..2..3.."
lm, rules = flm.load("builtin:puzzle"), SudokuRules(4)
if len(puzzle) != 16 or not set(puzzle) <= set(rules.symbols + "."):
    sys.exit("a puzzle has 16 cells, each 1 to 4 or .")
template = "".join("[1]" if cell == "." else cell for cell in puzzle)  # [1] is a hole of one token

for steps in (1, 4):
    answers = lm.infill(template, n=20, steps=steps)
    right = [answer for answer in answers if rules.check(puzzle, answer).solved]
    print(f"{steps} evaluation{'s' * (steps > 1)}: {len(right)} of {len(answers)} tries are right")
for row in range(0, 16, 4):
    print(" ", puzzle[row : row + 4], " -> ", (right or answers)[0][row : row + 4])
