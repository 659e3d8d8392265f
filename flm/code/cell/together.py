"""Program and test in one process, as benchmarks' own harnesses run them. What the program does may reach the test."""

from collections.abc import Callable
from typing import Any

from report import described


def run(task: dict[str, Any], report: Callable[..., None]) -> None:
    """Says how far it came: passed, failed, raised, syntax or broken. A program that ends this process says nothing."""
    report(*_stage(task["source"], task["test"]))


def _stage(source: str, test: str) -> tuple[str, str]:
    try:
        check = compile(test, "test", "exec", dont_inherit=True)
    except Exception as error:
        return "broken", described(error)
    try:
        program = compile(source, "program", "exec", dont_inherit=True)
    except Exception as error:
        return "syntax", described(error)
    names: dict[str, Any] = {}
    run = exec  # a program may put something else in its place
    try:
        run(program, names)
    except BaseException as error:
        return "raised", described(error)
    try:
        run(check, names)
    except BaseException as error:
        return "failed", described(error)
    return "passed", ""
