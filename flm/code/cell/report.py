"""How a cell is told its task and says what came of it.

The task is a file: a length, JSON, and after it a nonce that the cell reads only when it is done. A program that prints what a
verdict looks like, or leaves before the test is through, has no nonce to show.
"""

import json
import os
from collections.abc import Callable
from typing import Any

NONCE_BYTES = 32


def task_file(task: dict[str, Any], nonce: str) -> int:
    """A descriptor of a file in memory, to be read from its beginning."""
    raw = json.dumps(task).encode()
    descriptor = os.memfd_create("task")
    with open(descriptor, "wb", closefd=False) as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw + nonce.encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def read_task(descriptor: int) -> dict[str, Any]:
    size, parts = int.from_bytes(os.read(descriptor, 8), "little"), []
    while size:
        parts.append(os.read(descriptor, size))
        size -= len(parts[-1])
    return json.loads(b"".join(parts))


def reporter(task: int, verdict: int) -> Callable[[str, str, Any], None]:
    """To be made before the program runs; called with stage, detail and value, it says them, whatever the program patched."""
    read, write, pack = os.read, os.write, json.dumps

    def report(stage: str, detail: str = "", value: Any = None) -> None:
        nonce = read(task, NONCE_BYTES).decode()
        raw = pack({"nonce": nonce, "stage": stage, "detail": detail, "value": value}).encode()
        while raw:
            raw = raw[write(verdict, raw) :]

    return report


def described(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return type(error).__name__
