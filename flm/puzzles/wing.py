"""What tasks with answers that a program checks add to the core."""

from flm.registry import Wing

WING = Wing(result_kinds={"solve_eval": "flm.puzzles.result_kinds:SOLVE_EVAL"})
