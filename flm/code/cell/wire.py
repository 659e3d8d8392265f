"""Messages between the processes of the sandbox: a length, then JSON."""

import json
import os
from typing import Any

MAX_BYTES = 32 << 20  # of one message


class Closed(BaseException):
    """The other side is gone, or sends what is no message. No Exception: a test that expects one must not take it for it."""


def packed(message: Any) -> bytes:
    raw = json.dumps(message).encode()
    if len(raw) > MAX_BYTES:
        raise ValueError(f"a message of {len(raw)} bytes is more than {MAX_BYTES}")
    return len(raw).to_bytes(4, "little") + raw


def send(descriptor: int, message: Any) -> None:
    view = memoryview(packed(message))
    while view:
        view = view[os.write(descriptor, view) :]


def receive(descriptor: int) -> Any:
    size = int.from_bytes(_exactly(descriptor, 4), "little")
    if size > MAX_BYTES:
        raise Closed(f"announces {size} bytes")
    try:
        return json.loads(_exactly(descriptor, size))
    except (ValueError, RecursionError) as error:
        raise Closed("no JSON") from error


def _exactly(descriptor: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(descriptor, min(size, 1 << 20))
        if not part:
            raise Closed("end of file")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
