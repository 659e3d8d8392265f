"""Values between the judge and the tested program, as JSON: plain data crosses by value, anything else as a handle.

What arrives is data of the built-in types and nothing else, so the other side's idea of equality, comparison or length never
runs here. Lists, tuples, sets, dictionaries, ranges, bytes and complex numbers carry a tag; subclasses of them (a Counter, a
named tuple) arrive as what they derive from, iterators as an iterator over what they gave.
"""

import base64
import itertools
import json
import os
from collections.abc import Callable, Iterator, KeysView
from typing import Any

MAX_BYTES = 32 << 20  # of one message
MAX_ITEMS = 1_000_000  # taken from an iterator


class Closed(BaseException):
    """The other side is gone, or sends what is no message. No Exception: a test that expects one must not take it for it."""


def send(descriptor: int, message: Any) -> None:
    raw = json.dumps(message).encode()
    if len(raw) > MAX_BYTES:
        raise ValueError(f"a message of {len(raw)} bytes is more than {MAX_BYTES}")
    view = memoryview(len(raw).to_bytes(4, "little") + raw)
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


def encode(value: Any, keep: Callable[[Any], list[Any]]) -> Any:
    """JSON for a value; `keep` gives it for whatever is not plain."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    for kind, tag in (
        (list, "list"),
        (tuple, "tuple"),
        (set, "set"),
        (frozenset, "frozenset"),
        (KeysView, "set"),
        (Iterator, "iterator"),
    ):
        if isinstance(value, kind):
            return [tag, [encode(item, keep) for item in itertools.islice(value, MAX_ITEMS)]]
    if isinstance(value, dict):
        return ["dict", [[encode(key, keep), encode(item, keep)] for key, item in value.items()]]
    if isinstance(value, bytes | bytearray):
        return [type(value).__name__, base64.b64encode(value).decode()]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    return keep(value)


def decode(data: Any, find: Callable[[list[Any]], Any]) -> Any:
    """The value `encode` was given; `find` gives what stands for a handle. TypeError or ValueError: no such data."""
    if not isinstance(data, list):
        if isinstance(data, dict):
            raise TypeError("an untagged object")
        return data
    tag, content = data[0], data[1]
    if tag in _PLAIN:
        return _PLAIN[tag](decode(item, find) for item in content)
    if tag == "dict":
        return {decode(key, find): decode(item, find) for key, item in content}
    if tag in ("bytes", "bytearray"):
        raw = base64.b64decode(content)
        return raw if tag == "bytes" else bytearray(raw)
    if tag == "complex":
        return complex(*content)
    if tag == "range":
        return range(*content)
    return find(data)


_PLAIN: dict[str, Callable[[Iterator[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "iterator": lambda items: iter(list(items)),
}
