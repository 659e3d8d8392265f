"""Two processes that hold each other's objects: the judge's side and the tested program's, which speak the same way.

An object that is no data stays where it is; the other side holds a `Remote` that passes on what is done to it. While one side
waits for an answer it answers the other's questions, so that functions can be handed over and called back.
"""

import importlib
import itertools
import operator
import sys
import types
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import values
import wire
from remote import DOING, Remote
from report import described


class Peer:
    """One side.

    Args:
        out, back: descriptors to write and to read.
        allows: whether the other side may do this (a key of `DOING`) to an object of this one.
        trusted: whether this side's word for a function of the library is taken by the other.
    """

    def __init__(self, out: int, back: int, allows: Callable[[str, tuple[Any, ...]], bool], trusted: bool):
        self.out, self.back, self.allows, self.trusted = out, back, allows, trusted
        self.kept: dict[int, Any] = {}
        self.errors: dict[str, type] = {}  # exceptions of the other side's making
        self.closed = False  # remembered: a bare except in a test would swallow the exception

    def ask(self, do: str, *given: Any, **named: Any) -> Any:
        """What came back; an exception there is one of the nearest built-in type here."""
        self._send({
            "do": do,
            "given": [self.encode(item) for item in given],
            "named": {name: self.encode(item) for name, item in named.items()},
        })  # fmt: skip
        while "do" in (message := self._receive()):
            self.serve(message)
        try:
            if "printed" in message:
                sys.stdout.write(message["printed"])
            if "raised" in message:
                error = self._error(message["raised"], self.decode(message["with"]), self.decode(message["attributes"]))
            else:
                for original, after in zip(given, message["given"], strict=True):
                    if after is not None:
                        _become(original, self.decode(after))
                return self.decode(message["value"])
        except (LookupError, AttributeError, ValueError) as trouble:
            raise TypeError("no answer") from trouble
        raise error

    def serve(self, request: dict[str, Any]) -> None:
        """Does what is asked and sends what came of it."""
        try:
            given = [self.decode(item) for item in request["given"]]
            named = {name: self.decode(item) for name, item in request["named"].items()}
            if not self.allows(request["do"], tuple(given)):
                raise AttributeError(f"{request['do']} of that is not allowed")
            value = self.encode(DOING[request["do"]](*given, **named))
            # arguments too: a function may change a list that it was given
            crossed = zip(given, request["given"], strict=True)
            after = [self.encode(item) if _is_changeable(item, raw) else None for item, raw in crossed]
            message: dict[str, Any] = {"value": value, "given": after}
        except wire.Closed:
            raise
        except BaseException as error:
            message = self._raised(error)
        self._send(message | self.printed())

    def printed(self) -> dict[str, str]:
        """Text that was printed here since the last message, for the other side to print; the judge sends none."""
        return {}

    def contains(self, container: Remote, item: Any) -> Any:
        return self.ask("contains", container, item)

    def encode(self, value: Any) -> Any:
        return values.encode(value, self._keep)

    def decode(self, data: Any) -> Any:
        return values.decode(data, self._find)

    def _keep(self, value: Any) -> list[Any]:
        if isinstance(value, Remote):
            return ["yours", value._number]
        if self.trusted and (place := _place(value)):
            return ["import", *place]
        self.kept[id(value)] = value
        kind = "coroutine" if isinstance(value, Coroutine) else "iterator" if isinstance(value, _ITERATORS) else "object"
        return ["mine", id(value), kind, type(value).__name__]

    def _find(self, data: list[Any]) -> Any:
        tag, number, *rest = data
        if tag == "yours":
            return self.kept[number]
        if tag == "import" and not self.trusted:
            return operator.attrgetter(rest[0])(importlib.import_module(number))
        if tag != "mine" or not isinstance(number, int):
            raise TypeError(f"a handle of kind {tag!r}")
        remote = Remote(self, number, str(rest[1])[:60])
        return {"iterator": _pulled, "coroutine": _awaited}.get(rest[0], lambda found: found)(remote)

    def _raised(self, error: BaseException) -> dict[str, Any]:
        """Its classes from the nearest to the furthest, what it was made with, and what else it carries if that is data."""
        kinds = [f"{base.__module__}.{base.__qualname__}" for base in type(error).__mro__]
        try:
            given = values.encode(list(error.args), values.nothing)
            if str(self._error(kinds, list(error.args), {})) != str(error):
                given = values.encode([str(error)], values.nothing)
        except Exception:
            given = values.encode([described(error)], values.nothing)
        try:
            attributes = values.encode(vars(error), values.nothing)
        except Exception:
            attributes = values.encode({}, values.nothing)
        return {"raised": kinds, "with": given, "attributes": attributes}

    def _error(self, kinds: list[str], given: list[Any], attributes: dict[str, Any]) -> BaseException:
        """An exception of the first of some classes that is known here: the test's, the library's or a built-in one."""
        for name in kinds:
            module, _, place = name.rpartition(".")
            found = self.errors.get(name) or getattr(sys.modules.get(module), place, None)
            if isinstance(found, type) and issubclass(found, BaseException) and not issubclass(found, wire.Closed):
                break
        else:
            found = Exception
        try:
            error = found(*given)
        except TypeError:  # some take a certain number of arguments
            error = found.__new__(found, *given)
        vars(error).update(attributes)
        return error

    def _send(self, message: Any) -> None:
        try:
            wire.send(self.out, message)
        except OSError as error:
            self.closed = True
            raise wire.Closed("cannot be written to") from error

    def _receive(self) -> dict[str, Any]:
        try:
            message = wire.receive(self.back)
        except (wire.Closed, OSError) as error:
            self.closed = True
            raise wire.Closed(str(error)) from error
        if not isinstance(message, dict):
            self.closed = True
            raise wire.Closed("no message")
        return message


_ITERATORS = (
    types.GeneratorType, map, filter, zip, enumerate, reversed, *(type(iter(kind())) for kind in (list, tuple, set, dict, str)),
    *(kind for kind in vars(itertools).values() if isinstance(kind, type)),
)  # fmt: skip


def _pulled(remote: Remote) -> Iterator[Any]:
    while True:
        try:
            item = remote._peer.ask("next", remote)
        except StopIteration:
            return
        yield item


async def _awaited(remote: Remote) -> Any:
    return remote._peer.ask("finish", remote)


def _place(value: Any) -> tuple[str, str] | None:
    """Module and name of a function or class of the library; None: it is none."""
    owner = getattr(value, "__objclass__", value)
    module, name = getattr(owner, "__module__", None), getattr(value, "__qualname__", None)
    if not (isinstance(module, str) and isinstance(name, str)) or module.partition(".")[0] not in _LIBRARY:
        return None
    try:
        return (module, name) if operator.attrgetter(name)(sys.modules[module]) is value else None
    except (AttributeError, KeyError):
        return None


_LIBRARY = sys.stdlib_module_names | {"numpy"}


def _is_changeable(item: Any, raw: Any) -> bool:
    """Whether what crossed as `raw` is a container that crossed by value."""
    return isinstance(raw, list) and raw[0] in values.RULES and (hasattr(item, "clear") or hasattr(type(item), "__setitem__"))


def _become(original: Any, after: Any) -> None:
    """A container that the other side was given, as that left it."""
    if type(after) is not type(original):
        return
    if not hasattr(original, "clear"):
        original[:] = after
    elif original != after:
        original.clear()
        (original.extend if hasattr(original, "extend") else original.update)(after)
