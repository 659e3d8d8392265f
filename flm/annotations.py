"""What an annotation allows: described in words, and checked on a value. `flm.schema` checks whole calls with it.

Nothing is converted: true is no number, "3" is no whole number, and NaN and infinity are not allowed.
"""

import collections.abc
import dataclasses
import functools
import inspect
import os
import types
import typing
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf

from flm.ranges import OfVocabulary, Text, Where

_SEQUENCES = (list, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)

MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)

_LARGEST = 2**63 - 1  # of whole numbers: what torch and numpy can hold
_RANGES = (Ge, Gt, Le, Lt, MinLen, MultipleOf, Where)


@dataclasses.dataclass(frozen=True)
class Node:
    """Stands for an object that will be built from a config node.

    Attributes:
        target: name of what builds it.
        kind: the class it will be an instance of; None: unknown.
    """

    target: str
    kind: type | None = None


def _is_node(value: Any) -> bool:
    return isinstance(value, Node) or isinstance(value, collections.abc.Mapping) and isinstance(value.get("_target_"), str)


# A node that its reader builds later, of a class that the reader's package does not know.
NodeValue = Annotated[Any, Where(_is_node, "a mapping with _target_")]


def describe(annotation: Any) -> str:
    """What an annotation allows, in words: "a number above 0, or null"."""
    words = [said for member in members(annotation) if (said := _describe(*member))]
    return ", or ".join(dict.fromkeys(words)) if words else "anything"


def metadata(annotation: Any, kind: type) -> list[Any]:
    """The notes of one class in the outermost Annotated[...] of an annotation."""
    return [note for note in getattr(annotation, "__metadata__", ()) if isinstance(note, kind)]


def names_tokens(annotation: Any) -> bool:
    """Whether the values of an annotation, or of the items of its sequence, are ids of tokens (`flm.ranges.TokenId`)."""
    outer = members(annotation)
    inner = [member for kind, _ in outer for part in typing.get_args(kind) for member in members(part)]
    return any(isinstance(note, OfVocabulary) for _, notes in outer + inner for note in notes)


def shown(value: Any) -> str:
    """A value as one would type it on the command line, at most 120 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Node):
        return f"an object of {value.target}"
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        plain = value.isprintable() and value.strip() == value and not _like_other_types(value)
        text = value if plain else repr(value)
    else:
        text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."


def _like_other_types(text: str) -> bool:
    try:
        float(text)
        return True
    except ValueError:
        return text.lower() in ("", "true", "false", "null", "none")


def fits(annotation: Any, value: Any) -> bool:
    """Whether a value is one that an annotation allows."""
    from pydantic import ValidationError

    try:
        _adapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True


def members(annotation: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    """(type, notes) of each member of a union; of the annotation itself if it is none."""
    if typing.get_origin(annotation) is Annotated:
        base, *notes = typing.get_args(annotation)
        return [(kind, (*inner, *notes) if kind is not type(None) else ()) for kind, inner in members(base)]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return [member for part in typing.get_args(annotation) for member in members(part)]
    return [(type(None) if annotation is None else annotation, ())]


def _describe(kind: Any, notes: tuple[Any, ...]) -> str:
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    further = "".join(f", {note.says}" for note in notes if isinstance(note, Where))
    if kind is type(None):
        return "null"
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        return ("a whole number" if kind is int else "a number") + _range(kind, notes) + further
    if kind is str:
        return further.removeprefix(", ") or "text"
    if inspect.isclass(origin) and issubclass(origin, os.PathLike):
        return further.removeprefix(", ") or "text that is not empty"
    if origin is Literal:
        names = dict.fromkeys(str(choice) if isinstance(choice, str) else shown(choice) for choice in inner)
        return f"one of {', '.join(names)}" if len(names) > 1 else next(iter(names))
    if origin is tuple and inner[-1:] != (...,) and inner:
        return f"a list of {len(inner)}: {'; '.join(map(describe, inner))}"
    if origin in _SEQUENCES or origin is tuple:
        least = max((note.min_length for note in notes if isinstance(note, MinLen)), default=0)
        start = "a list" if not least else "a list that is not empty" if least == 1 else f"a list of at least {least}"
        return start + (f", each {describe(inner[0])}" if inner and inner[0] is not Any else "") + further
    if origin in MAPPINGS:
        values = f", each value {describe(inner[1])}" if inner and inner[1] is not Any else ""
        return "a mapping {name: value}" + values + further
    if kind is Any or isinstance(kind, typing.TypeVar):
        return further.removeprefix(", ") or "anything"
    if inspect.isclass(kind) and dataclasses.is_dataclass(kind):
        return f"a mapping with {', '.join(field.name for field in dataclasses.fields(kind))}"
    return "an object ({_target_: ...})"


def _range(kind: type, notes: tuple[Any, ...]) -> str:
    low = [note for note in notes if isinstance(note, Ge | Gt)]
    high = [note for note in notes if isinstance(note, Le | Lt)]
    if low and high and kind is float:
        ends = ("(" if isinstance(low[0], Gt) else "["), (")" if isinstance(high[0], Lt) else "]")
        return f" in {ends[0]}{_bound(low[0]):g}, {_bound(high[0]):g}{ends[1]}"
    words = [f"{'above' if isinstance(note, Gt) else 'of at least'} {_bound(note)}" for note in low]
    words += [f"{'below' if isinstance(note, Lt) else 'at most'} {_bound(note)}" for note in high]
    steps = "".join(f", a multiple of {note.multiple_of}" for note in notes if isinstance(note, MultipleOf))
    return (" " + " and ".join(words) if words else "") + steps


def _bound(note: Any) -> Any:
    return getattr(note, type(note).__name__.lower())


@functools.cache
def _adapter(annotation: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(_strict(annotation))


def _strict(annotation: Any) -> Any:
    """The annotation for pydantic, with every conversion switched off."""
    return typing.Union[tuple(_strict_member(*member) for member in members(annotation))]  # noqa: UP007


def _strict_member(kind: Any, notes: tuple[Any, ...]) -> Any:
    from pydantic import AfterValidator, AllowInfNan, BeforeValidator, PlainValidator, Strict

    def that_holds(where: Where) -> Any:
        def validated(value: Any) -> Any:
            if not where.holds(value):
                raise ValueError(where.says)
            return value

        return AfterValidator(validated)

    limits = [that_holds(note) if isinstance(note, Where) else note for note in notes if isinstance(note, _RANGES)]
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind is type(None):
        return None
    if kind is int:
        return Annotated[(int, Strict(), Ge(-_LARGEST), Le(_LARGEST), *limits)]
    if kind is float:
        return Annotated[(float, Strict(), AllowInfNan(False), *limits, BeforeValidator(_no_endless_integer))]
    if kind is bool or kind is str:
        return Annotated[(kind, Strict(), *limits)]
    if inspect.isclass(origin) and issubclass(origin, os.PathLike):
        plain = _strict(Text) | Annotated[Any, PlainValidator(functools.partial(_object, kind=origin))]
        return Annotated[(plain, *limits, plain)]
    if origin is Literal:
        return kind
    if origin is tuple and inner and inner[-1] is not ...:
        return Annotated[(tuple[tuple(map(_strict, inner))], *limits, BeforeValidator(_no_iterator))]
    if origin in _SEQUENCES or origin is tuple:
        return Annotated[(list[_strict(inner[0]) if inner else Any], *limits, BeforeValidator(_no_iterator))]
    if origin in MAPPINGS:
        return Annotated[(dict[tuple(map(_strict, inner)) if inner else (Any, Any)], *limits, dict)]
    if kind is Any or isinstance(kind, typing.TypeVar):
        return Annotated[(Any, *limits, Any)]
    return Annotated[Any, PlainValidator(functools.partial(_object, kind=origin))]


def _no_iterator(value: Any) -> Any:
    if isinstance(value, collections.abc.Iterator):  # looking through it would leave nothing for whoever it is given to
        raise ValueError("a list is needed")
    return value


def _no_endless_integer(value: Any) -> Any:
    if isinstance(value, int) and abs(value) > _LARGEST:  # no number that a tensor could hold
        raise ValueError("too large")
    return value


def _object(value: Any, kind: Any) -> Any:
    """Refuses plain values, and nodes of a class that is known not to be of this kind. Protocols are not checked."""
    if value is None or isinstance(value, str | bytes | int | float | list | tuple | dict):
        raise ValueError("an object is needed")
    is_known = isinstance(kind, type) and not getattr(kind, "_is_protocol", False)
    if isinstance(value, Node) and value.kind is not None and is_known and not issubclass(value.kind, kind):
        raise ValueError("an object of another class is needed")
    return value
