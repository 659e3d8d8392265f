"""An object of the other process, and what can be done to it from here."""

import builtins
import operator
from collections.abc import Callable, Iterator
from typing import Any


def _finished(coroutine: Any) -> Any:
    import asyncio

    return asyncio.run(coroutine)


_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift")

# What one side may ask the other to do; the objects come first among what is given.
DOING: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in (
        *_ARITHMETIC, "neg", "pos", "abs", "invert", "eq", "ne", "lt", "le", "gt", "ge", "getitem", "setitem", "delitem",
        "contains", "iadd", "isub", "imul",
    )},
    **{name: getattr(builtins, name) for name in (
        "getattr", "setattr", "delattr", "len", "str", "repr", "bool", "hash", "iter", "next", "isinstance", "issubclass",
        "int", "float", "round", "divmod", "reversed", "format", "dir",
    )},
    "call": lambda target, *given, **named: target(*given, **named),
    "enter": lambda target: target.__enter__(),
    "exit": lambda target: target.__exit__(None, None, None),
    "finish": _finished,
}  # fmt: skip


class Remote:
    """An object of the other side. Equal to objects of that side where it says so there, and to nothing else.

    Args:
        peer: see peer.py.
        number: of the object there.
        kind: name of its class.
    """

    def __init__(self, peer: Any, number: int, kind: str):
        self.__dict__.update(_peer=peer, _number=number, _kind=kind)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._peer.ask("call", self, *given, **named)

    def __getattr__(self, name: str) -> Any:
        return self._peer.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._peer.ask("delattr", self, name)

    def __contains__(self, item: Any) -> bool:
        return self._peer.contains(self, item)

    def __bool__(self) -> bool:
        return self._peer.ask("bool", self) is True

    def __iter__(self) -> Iterator[Any]:
        return self._peer.ask("iter", self)

    def __instancecheck__(self, item: Any) -> bool:
        return isinstance(item, Remote) and self._peer.ask("isinstance", item, self) is True

    def __subclasscheck__(self, item: Any) -> bool:
        return isinstance(item, Remote) and self._peer.ask("issubclass", item, self) is True

    def __exit__(self, *error: Any) -> Any:
        return self._peer.ask("exit", self)


def _passing_on(name: str, swapped: bool = False) -> Callable[..., Any]:
    def method(self: Remote, *given: Any) -> Any:
        return self._peer.ask(name, *given, self) if swapped else self._peer.ask(name, self, *given)

    return method


def _comparing(name: str, otherwise: Any) -> Callable[[Remote, Any], Any]:
    def method(self: Remote, other: Any) -> Any:
        if not isinstance(other, Remote):
            return otherwise
        return self._peer.ask(name, self, other)

    return method


for _name in (*_ARITHMETIC, "divmod"):
    setattr(Remote, f"__{_name.strip('_')}__", _passing_on(_name))
    setattr(Remote, f"__r{_name.strip('_')}__", _passing_on(_name, swapped=True))
for _name in ("neg", "pos", "abs", "invert", "getitem", "setitem", "delitem", "len", "str", "repr", "hash", "next", "int",
              "float", "round", "reversed", "format", "dir", "enter", "iadd", "isub", "imul"):  # fmt: skip
    setattr(Remote, f"__{_name}__", _passing_on(_name))
for _name, _otherwise in (("eq", False), ("ne", True), *((_name, NotImplemented) for _name in ("lt", "le", "gt", "ge"))):
    setattr(Remote, f"__{_name}__", _comparing(_name, _otherwise))
