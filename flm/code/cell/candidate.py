"""The side of the tested program: runs it as a module, then does with it what the judge asks.

Whatever the program does to this process, it can only change its own answers.
"""

import sys
import types
from typing import Any

import wire

NAME = "candidate"


class Candidate:
    """The program's module, and its objects that crossed to the judge as handles."""

    def __init__(self, source: str):
        self.module = types.ModuleType(NAME)
        self.kept: dict[int, Any] = {}
        sys.modules[NAME] = self.module
        self.code = compile(source, NAME, "exec")

    def run(self) -> None:
        exec(self.code, self.module.__dict__)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """One of: call, getattr, setattr, getitem, len, str; on what `on` names."""
        target = self._find(request["on"])
        given = [wire.decode(item, self._find) for item in request["given"]]
        named = {name: wire.decode(item, self._find) for name, item in request["named"].items()}
        result = _DOING[request["do"]](target, *given, **named)
        # arguments too: a function may change a list that it was given
        return {"value": wire.encode(result, self._keep), "given": [wire.encode(item, self._keep) for item in given]}

    def _keep(self, value: Any) -> list[Any]:
        self.kept[id(value)] = value
        return ["object", id(value), bool(value), type(value).__name__]

    def _find(self, reference: list[Any]) -> Any:
        return getattr(self.module, reference[1]) if reference[0] == "name" else self.kept[reference[1]]


_DOING: dict[str, Any] = {
    "call": lambda target, *given, **named: target(*given, **named),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": lambda target, key: target[key],
    "len": len,
    "str": str,
}


def serve(source: str, requests: int, answers: int) -> None:
    """Until the judge closes its end. The first message says how far the program came: ready, syntax or raised."""
    try:
        candidate = Candidate(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        wire.send(answers, {"stage": "syntax", "detail": described(error)})
        return
    try:
        candidate.run()
    except BaseException as error:
        wire.send(answers, {"stage": "raised", "detail": described(error)})
        return
    wire.send(answers, {"stage": "ready"})
    while True:
        request = wire.receive(requests)
        try:
            answer = candidate.answer(request)
        except BaseException as error:
            builtin = next((base.__name__ for base in type(error).__mro__ if base.__module__ == "builtins"), "Exception")
            answer = {"raised": builtin, "detail": described(error)}
        wire.send(answers, answer)


def described(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return type(error).__name__
