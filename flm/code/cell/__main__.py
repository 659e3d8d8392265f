"""`python -I -S -B cell ROLE IN OUT [VERDICT]`: one process of the sandbox. Its task comes as JSON on standard input."""

import json
import os
import sys

import candidate
import confine
import judge


def main() -> None:
    role, *descriptors = sys.argv[1:]
    with open(0, "rb", closefd=False) as stream:
        task = json.loads(stream.read())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.environ.clear()  # Python itself sets a locale where there is none
    sys.set_int_max_str_digits(0)
    confine.confine(**task["confine"])
    if role == "judge":
        judge.judge(task, *map(int, descriptors))
    else:
        candidate.serve(task["source"], *map(int, descriptors))


main()
