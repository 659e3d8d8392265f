"""The side of the test when it is apart from the program.

The test's own code, the helpers it takes from the reference solution, its comparisons and its assertions run here, where no
code of the tested program ever does.
"""

import secrets
import sys
import types
from collections.abc import Callable
from typing import Any

import wire
from peer import Peer
from remote import Remote
from report import described

NAME = "test"
_ALLOWED = frozenset({"getattr", "setattr", "getitem", "setitem", "len", "bool", "str", "iter", "contains"})
_NAMES = ("__name__", "__qualname__", "__doc__")


class Judge(Peer):
    """Asks the tested program. What the program may ask in turn is little: it must not reach the test by what it is handed."""

    def __init__(self, requests: int, answers: int):
        super().__init__(requests, answers, self._allows, trusted=True)

    def contains(self, container: Remote, item: Any) -> Any:
        """False of what contains everything: it contains a stranger too."""
        if self.ask("contains", container, item) is not True:
            return False
        try:
            return self.ask("contains", container, secrets.token_hex(16)) is not True
        except Exception:
            return True

    def _allows(self, do: str, given: tuple[Any, ...]) -> bool:
        target = given[0]
        if self.kept.get(id(target)) is not target:
            return False
        if isinstance(target, type):
            return do == "call" and target.__module__ == NAME
        if do in ("call", "next", "finish"):
            return True
        if do == "getattr" and given[1] in _NAMES:
            return True
        if do in ("getattr", "setattr") and not (isinstance(given[1], str) and not given[1].startswith("_")):
            return False
        return do in _ALLOWED and type(target).__module__ == NAME  # an object of a class of the test

    def meet(self, wanted: list[str], names: dict[str, Any]) -> str:
        """Takes what is wanted of the program into the test's names. What is wrong with its first message; empty: nothing."""
        first = wire.receive(self.back)
        if first["stage"] != "ready":
            return f"{first['stage']}: {first['detail']}"
        for name in wanted:
            names.pop(name, None)  # what the program lacks, the test must not find in the reference
            if name in first["errors"]:
                kinds = first["errors"][name]
                self.errors[kinds[0]] = names[name] = type(name, (type(self._error(kinds[1:], [], {})),), {})
            elif name in first["names"]:
                names[name] = self.decode(first["names"][name])
        return ""


def run(task: dict[str, Any], report: Callable[..., None], requests: int, answers: int) -> None:
    """Says how far it came: passed, failed, died, or broken."""
    report(*_stage(task, Judge(requests, answers)))


def _stage(task: dict[str, Any], judge: Judge) -> tuple[str, str]:
    module = types.ModuleType(NAME)
    sys.modules[NAME] = module
    names = module.__dict__
    try:
        exec(compile(task["reference"], "reference", "exec", dont_inherit=True), names)
        test = compile(task["test"], NAME, "exec", dont_inherit=True)
    except BaseException as error:
        return "broken", f"reference or test: {described(error)}"
    try:
        if trouble := judge.meet(task["remote"], names):
            return "died", trouble
    except (wire.Closed, LookupError, TypeError, ValueError, AttributeError) as error:
        return "died", f"while starting: {described(error)}"
    detail = ""
    try:
        exec(test, names)
    except BaseException as error:
        detail = described(error)
    if judge.closed:
        return "died", detail
    return ("failed", detail) if detail else ("passed", "")
