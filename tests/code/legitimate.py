"""Programs that are right, each with a wrong variant, from legitimate.txt: verdicts on them must be those of plain `exec`."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Legitimate:
    """A program with its test; `wrong` is the program with one thing in it replaced."""

    name: str
    source: str
    wrong: str
    test: str

    def program(self, source: str) -> tuple[Any, ...]:
        """Arguments of `Program`, as a benchmark would put it: the test's names that the right program defines are its own."""
        named = {node.id for node in ast.walk(ast.parse(self.test)) if isinstance(node, ast.Name)}
        scope: dict[str, object] = {}
        for node in ast.parse(self.source).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                scope[node.name] = node
            elif isinstance(node, ast.Assign):
                scope |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        return source, self.test, tuple(sorted(named & set(scope))), self.source


def _read() -> list[Legitimate]:
    found = []
    for block in Path(__file__).with_name("legitimate.txt").read_text().split("=== ")[1:]:
        name, wrong, rest = block.split("\n", 2)
        source, test = rest.split("---\n")
        old, new = re.fullmatch("wrong: (.*) => (.*)", wrong).groups()
        assert old in source, name
        found.append(Legitimate(name, source, source.replace(old, new), test))
    return found


LEGITIMATE = _read()


def plain(source: str, test: str) -> str:
    """What `exec` makes of program and test: passed, or the kind of the exception."""
    names: dict[str, object] = {}
    try:
        exec(compile(source, "program", "exec", dont_inherit=True), names)
        exec(compile(test, "test", "exec", dont_inherit=True), names)
    except BaseException as error:
        return type(error).__name__
    return "passed"
