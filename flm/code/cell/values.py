"""Values as JSON: data crosses by value, anything else as a handle.

What arrives is data of the types below and nothing else, so the sender's idea of equality, comparison or length never runs at
the receiver. A subclass arrives as the nearest type of the table that it derives from, a named tuple as one of the same fields.
"""

import base64
import functools
import importlib
import keyword
import operator
import types
from collections.abc import Callable, Iterable
from typing import Any

Keep = Callable[[Any], list[Any]]  # gives the handle of what is no data
Find = Callable[[list[Any]], Any]  # gives what stands for a handle

_SMALL = 1 << 53
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made by a class statement


def _text(value: bytes | bytearray | memoryview) -> str:
    return base64.b64encode(value).decode()


def _named(name: str, fields: list[str], items: Iterable[Any]) -> Any:
    from collections import namedtuple

    if not all(isinstance(field, str) and field.isidentifier() and not keyword.iskeyword(field) for field in fields):
        raise TypeError(f"a named tuple of fields {fields}")
    return namedtuple(name if str(name).isidentifier() else "Named", fields, rename=True)(*items)


def _array(kind: str, shape: list[int], raw: str) -> Any:
    import numpy

    return numpy.frombuffer(base64.b64decode(raw), numpy.dtype(kind)).reshape(shape).copy()


def _pack_array(value: Any) -> list[Any]:
    if value.dtype.kind not in "biufcSUMm":
        raise TypeError(f"an array of {value.dtype}")
    return [value.dtype.str, list(value.shape), _text(value.tobytes())]


def _library(module: str, name: str) -> Callable[..., Any]:
    return lambda *given: operator.attrgetter(name)(importlib.import_module(module))(*given)


# By full name: what a value is made of (data again), and what makes it of that.
_Rule = tuple[Callable[[Any], list[Any]], Callable[..., Any]]
RULES: dict[str, _Rule] = {
    "builtins.list": (lambda v: list.__getitem__(v, slice(None)), lambda *items: list(items)),
    "builtins.tuple": (lambda v: list(tuple.__iter__(v)), lambda *items: items),
    "builtins.set": (lambda v: list(set.__iter__(v)), lambda *items: set(items)),
    "builtins.frozenset": (lambda v: list(frozenset.__iter__(v)), lambda *items: frozenset(items)),
    "builtins.dict": (lambda v: [list(pair) for pair in dict.items(v)], lambda *pairs: dict(pairs)),
    "builtins.dict_keys": (list, lambda *items: dict.fromkeys(items).keys()),
    "builtins.dict_items": (list, lambda *pairs: dict(pairs).items()),
    "builtins.dict_values": (list, lambda *items: dict(enumerate(items)).values()),
    "builtins.bytes": (lambda v: [_text(v)], base64.b64decode),
    "builtins.bytearray": (lambda v: [_text(v)], lambda raw: bytearray(base64.b64decode(raw))),
    "builtins.memoryview": (lambda v: [_text(v.tobytes())], lambda raw: memoryview(base64.b64decode(raw))),
    "builtins.complex": (lambda v: [v.real, v.imag], complex),
    "builtins.range": (lambda v: [v.start, v.stop, v.step], range),
    "builtins.slice": (lambda v: [v.start, v.stop, v.step], slice),
    "builtins.ellipsis": (lambda v: [], lambda: ...),
    "builtins.NotImplementedType": (lambda v: [], lambda: NotImplemented),
    "collections.Counter": (lambda v: [dict(v)], _library("collections", "Counter")),
    "collections.OrderedDict": (lambda v: [list(v.items())], _library("collections", "OrderedDict")),
    "collections.defaultdict": (
        lambda v: [v.default_factory if isinstance(v.default_factory, type) else None, dict(v)],
        _library("collections", "defaultdict"),
    ),
    "collections.deque": (lambda v: [list(v), v.maxlen], _library("collections", "deque")),
    "fractions.Fraction": (lambda v: [v.numerator, v.denominator], _library("fractions", "Fraction")),
    "decimal.Decimal": (lambda v: [str(v)], _library("decimal", "Decimal")),
    "datetime.datetime": (lambda v: [v.isoformat()], _library("datetime", "datetime.fromisoformat")),
    "datetime.date": (lambda v: [v.year, v.month, v.day], _library("datetime", "date")),
    "datetime.time": (lambda v: [v.isoformat()], _library("datetime", "time.fromisoformat")),
    "datetime.timedelta": (lambda v: [v.days, v.seconds, v.microseconds], _library("datetime", "timedelta")),
    "datetime.timezone": (lambda v: [v.utcoffset(None)], _library("datetime", "timezone")),
    "uuid.UUID": (lambda v: [str(v)], _library("uuid", "UUID")),
    "pathlib.PurePosixPath": (lambda v: [str(v)], _library("pathlib", "PurePosixPath")),
    "pathlib.PosixPath": (lambda v: [str(v)], _library("pathlib", "PosixPath")),
    "array.array": (lambda v: [v.typecode, v.tolist()], _library("array", "array")),
    "types.SimpleNamespace": (lambda v: [vars(v)], lambda names: types.SimpleNamespace(**names)),
    "ipaddress.IPv4Address": (lambda v: [str(v)], _library("ipaddress", "IPv4Address")),
    "ipaddress.IPv6Address": (lambda v: [str(v)], _library("ipaddress", "IPv6Address")),
    "ipaddress.IPv4Network": (lambda v: [str(v)], _library("ipaddress", "IPv4Network")),
    "numpy.ndarray": (_pack_array, _array),
    "numpy.generic": (_pack_array, lambda kind, shape, raw: _array(kind, shape, raw)[()]),
    "named tuple": (lambda v: [type(v).__name__, list(type(v)._fields), list(tuple.__iter__(v))], _named),
    "type": (lambda v: [v.__name__], lambda name: _TYPES[name]),
}  # fmt: skip
_TYPES = {
    **{name: kind for name, kind in vars(__import__("builtins")).items() if isinstance(kind, type)},
    "NoneType": type(None),
    "function": type(_text),
}


def encode(value: Any, keep: Keep) -> Any:
    """JSON for a value; `keep` gives it for whatever is no data."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        plain = int.__add__(value, 0)
        return plain if -_SMALL < plain < _SMALL else ["int", hex(plain)]
    if isinstance(value, float) and not type(value).__module__.startswith("numpy"):
        return float.__float__(value)
    if isinstance(value, type) and _TYPES.get(value.__name__) is value:
        return ["type", value.__name__]
    name = _rule_of(type(value))
    if name is None:
        return keep(value)
    try:
        parts = RULES[name][0](value)
    except (TypeError, AttributeError, ValueError):
        return keep(value)
    return [name, *[encode(part, keep) for part in parts]]


def decode(data: Any, find: Find) -> Any:
    """The value `encode` was given. TypeError, ValueError or another Exception: no such data."""
    if not isinstance(data, list):
        if isinstance(data, dict):
            raise TypeError("an untagged object")
        return data
    tag, *content = data
    if tag == "int":
        return int(content[0], 16)
    if tag in RULES:
        return RULES[tag][1](*[decode(part, find) for part in content])
    return find(data)


def nothing(handle: Any) -> Any:
    """In place of `keep` or `find` where no handle may cross. Raises TypeError."""
    raise TypeError(f"{handle[0] if isinstance(handle, list) else type(handle).__name__} is no plain data")


@functools.cache
def _rule_of(kind: type) -> str | None:
    if issubclass(kind, tuple) and isinstance(getattr(kind, "_fields", None), tuple):
        return "named tuple"
    if issubclass(kind, type):
        return None
    for base in kind.__mro__:
        name = f"{base.__module__.partition('._')[0]}.{base.__qualname__}"  # pathlib._local in Python 3.13
        # a class of the program may bear a name of the library: only the library's own is taken for it
        if name in RULES and (base.__module__ != "builtins" or not base.__flags__ & _HEAP_TYPE):
            return name
    return None
