"""A program run for its answer: the value of an expression after it, and what it printed."""

import io
import sys
from collections.abc import Callable
from typing import Any

import values
from report import described

PRINTED = 1 << 14  # characters


def run(task: dict[str, Any], report: Callable[..., None]) -> None:
    """Says answered with value and print, or syntax, raised, or failed (the expression raised, or gave no plain data)."""
    sys.stdout = printed = io.StringIO()
    stage, detail, value = _stage(task["source"], task["expression"])
    report(stage, detail, [value, printed.getvalue()[:PRINTED]])


def _stage(source: str, expression: str | None) -> tuple[str, str, Any]:
    try:
        program = compile(source, "program", "exec", dont_inherit=True)
    except Exception as error:
        return "syntax", described(error), None
    names: dict[str, Any] = {}
    try:
        exec(program, names)
    except BaseException as error:
        return "raised", described(error), None
    if expression is None:
        return "answered", "", None
    try:
        return "answered", "", values.encode(eval(expression, names), values.nothing)
    except BaseException as error:
        return "failed", described(error), None
