"""The side of the tested program when it is apart from the test: runs it, then does with it what the judge asks.

Whatever the program does to this process, it can only change its own answers.
"""

import io
import sys
from typing import Any

import wire
from peer import Peer
from report import described


class Candidate(Peer):
    """The program's names, and its objects that crossed to the judge as handles."""

    def __init__(self, requests: int, answers: int):
        super().__init__(answers, requests, lambda do, given: True, trusted=False)
        self.names: dict[str, Any] = {}
        self._text = io.BytesIO()
        sys.stdout = io.TextIOWrapper(self._text, encoding="utf-8", errors="surrogatepass", write_through=True)

    def printed(self) -> dict[str, str]:
        text = self._text.getvalue().decode("utf-8", "surrogatepass")
        self._text.seek(0)
        self._text.truncate()
        return {"printed": text} if text else {}

    def introduce(self, wanted: list[str]) -> None:
        """Names of the test that mean the program's functions, classes and values."""
        found = {name: self.names[name] for name in wanted if name in self.names}
        errors = {
            name: [f"{base.__module__}.{base.__qualname__}" for base in value.__mro__]
            for name, value in found.items()
            if isinstance(value, type) and issubclass(value, BaseException)
        }
        names = {name: self.encode(value) for name, value in found.items()}
        self._send({"stage": "ready", "names": names, "errors": errors} | self.printed())


def run(task: dict[str, Any], requests: int, answers: int) -> None:
    """Until the judge closes its end. The first message says how far the program came: ready, syntax or raised."""
    candidate = Candidate(requests, answers)
    try:
        code = compile(task["source"], "program", "exec", dont_inherit=True)
    except Exception as error:
        wire.send(answers, {"stage": "syntax", "detail": described(error)})
        return
    try:
        exec(code, candidate.names)
    except BaseException as error:
        wire.send(answers, {"stage": "raised", "detail": described(error)})
        return
    candidate.introduce(task["remote"])
    while True:
        candidate.serve(wire.receive(requests))
