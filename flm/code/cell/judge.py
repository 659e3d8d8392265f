"""The side of the test: runs the benchmark's test against the tested program, which lives in another process.

The test's own code, the helpers it takes from the reference solution, its comparisons and its assertions run here, where no
code of the tested program ever does.
"""

import builtins
import json
import os
import sys
import types
from typing import Any

import wire

NAME = "test"


class Remote:
    """Something of the tested program: a function by name, or an object that is no plain data. Equal only to itself."""

    def __init__(self, line: "Line", reference: list[Any], truth: bool = True, kind: str = "object"):
        self.__dict__.update(_line=line, _reference=reference, _truth=truth, _kind=kind)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._line.ask("call", self, given, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._line.ask("getattr", self, (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        self._line.ask("setattr", self, (name, value))

    def __getitem__(self, key: Any) -> Any:
        return self._line.ask("getitem", self, (key,))

    def __len__(self) -> int:
        return self._line.ask("len", self)

    def __str__(self) -> str:
        return self._line.ask("str", self)

    def __bool__(self) -> bool:
        return self._truth

    def __repr__(self) -> str:
        return f"<{self._kind} of the tested program>"


class Line:
    """Questions to the process of the tested program."""

    def __init__(self, requests: int, answers: int):
        self.requests, self.answers, self.closed = requests, answers, False

    def ask(self, do: str, on: Remote, given: tuple[Any, ...] = (), named: dict[str, Any] | None = None) -> Any:
        """What came back; an exception there is one of the nearest built-in type here."""
        sent = {
            "do": do,
            "on": on._reference,
            "given": [wire.encode(item, _handle) for item in given],
            "named": {name: wire.encode(item, _handle) for name, item in (named or {}).items()},
        }
        try:
            wire.send(self.requests, sent)
            answer = wire.receive(self.answers)
        except (wire.Closed, OSError):
            self.closed = True  # remembered: a bare except in a test would swallow it
            raise
        if "raised" in answer:
            kind = getattr(builtins, str(answer["raised"]), Exception)
            ordinary = isinstance(kind, type) and issubclass(kind, Exception)
            raise _exception(kind if ordinary else Exception, str(answer["detail"]))
        for original, after in zip(given, answer["given"], strict=True):
            if isinstance(original, list | set | dict):
                _become(original, wire.decode(after, self._remote))
        return wire.decode(answer["value"], self._remote)

    def _remote(self, data: list[Any]) -> Remote:
        tag, number, truth, kind = data
        if tag != "object" or not isinstance(number, int):
            raise TypeError(f"a handle of kind {tag!r}")
        return Remote(self, ["object", number], truth is True, str(kind)[:60])


def _handle(value: Any) -> list[Any]:
    if not isinstance(value, Remote):
        raise TypeError(f"the test passes a {type(value).__name__}, which cannot cross to the tested program")
    return value._reference


def _exception(kind: type[Exception], detail: str) -> Exception:
    try:
        return kind(detail)
    except TypeError:  # some take more than a text
        return Exception(detail)


def _become(original: Any, after: Any) -> None:
    """A container that the tested program was given, as that left it."""
    if type(after) is not type(original):
        return
    if isinstance(original, list):
        original[:] = after
    elif original != after:
        original.clear()
        original.update(after)


def judge(task: dict[str, Any], requests: int, answers: int, verdict: int) -> None:
    """Writes one line: the nonce, how far it came (passed, failed, died, raised, syntax or broken) and a few words."""
    line = Line(requests, answers)
    stage, detail = _stage(task, line)
    raw = json.dumps({"nonce": task["nonce"], "stage": stage, "detail": detail[:300]}).encode()
    os.write(verdict, raw + b"\n")


def _stage(task: dict[str, Any], line: Line) -> tuple[str, str]:
    try:
        first = wire.receive(line.answers)
        if first["stage"] != "ready":
            return ("syntax" if first["stage"] == "syntax" else "raised"), str(first["detail"])
    except (wire.Closed, KeyError, TypeError) as error:
        return "died", f"while starting: {error}"
    module = types.ModuleType(NAME)
    sys.modules[NAME] = module
    try:
        exec(compile(task["reference"], "reference", "exec"), module.__dict__)
        test = compile(task["test"], NAME, "exec")
    except BaseException as error:
        return "broken", f"reference or test: {type(error).__name__}: {error}"
    for name in task["remote"]:
        setattr(module, name, Remote(line, ["name", name]))
    detail = ""
    try:
        exec(test, module.__dict__)
    except BaseException as error:
        detail = f"{type(error).__name__}: {error}"
    if line.closed:
        return "died", detail
    return ("failed", detail) if detail else ("passed", "")
