"""The signature is the schema: arguments are checked against a callable's annotations before it is called.

An error is one line: the key, what is allowed, and the value. Nothing is converted: only true and false are booleans, text is
no list and no number, 2.0 is no whole number (but an integer is a number), and numbers are finite. Understood are Python's
plain types, Literal, sequences, mappings, dataclasses and unions of them, with ranges as `Annotated[float, Gt(0)]`
(`flm.ranges`). Values with other annotations, or none, are not looked into.
"""

import dataclasses
import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flm.annotations import MAPPINGS, Node, describe, fits, members, shown
from flm.ranges import CalledWith

EMPTY = inspect.Parameter.empty
MISSING = "???"  # a config value that must still be given
_MARKS = ("_target_", "_partial_", "_convert_", "_recursive_")  # only Hydra reads the last two


@dataclasses.dataclass(frozen=True)
class Signature:
    """The parameters of a callable.

    Attributes:
        parameters: by name, with annotations resolved; `EMPTY`: no annotation.
        is_open: whether it takes keywords of any other name.
    """

    parameters: dict[str, inspect.Parameter]
    is_open: bool


def check(
    target: Callable[..., Any],
    arguments: Mapping[str, Any],
    path: str,
    given: Iterable[str] = (),
    is_partial: bool = False,
    takes: str | None = None,
) -> None:
    """Raises ValueError unless `target(**arguments, **given)` fits the signature of `target`.

    Args:
        arguments: plain values, objects, and `Node`s that stand for objects not yet built.
        path: the config path of the arguments, as "algo"; "": errors name the bare argument.
        given: names that the program passes itself, which must not be among the arguments.
        is_partial: whether arguments may be missing.
        takes: name of the target in errors; None: its own.
    """
    signature, given = signature_of(target), set(given)
    name_of = takes or getattr(target, "__name__", type(target).__name__)
    known = [name for name in signature.parameters if name not in given]
    for name in arguments:
        if name in given:
            raise ValueError(f"{_key(path, name)} is set by the program: leave it out")
        if name not in signature.parameters and not signature.is_open:
            raise ValueError(f"{_key(path, name)}: {name_of} takes no {name}{nearest(name, known, path)}{listing(known)}")
    for name, value in arguments.items():
        if name in signature.parameters:
            check_value(signature.parameters[name], value, _key(path, name))
    if not is_partial:
        for name in known:
            if name not in arguments and signature.parameters[name].default is EMPTY:
                raise ValueError(f"{_key(path, name)} is missing: it must be {describe(signature.parameters[name].annotation)}")


def check_node(
    node: Mapping[str, Any],
    path: str,
    resolve: Callable[[Any, str], Callable[..., Any]],
    given: Iterable[str] = (),
) -> None:
    """Raises ValueError unless a config node, and those within it, fit the signatures of their targets. Builds nothing.

    Args:
        node: plain values with `_target_`, and with `_partial_: true` if arguments may be missing.
        resolve: resolve(name, key) gives the callable of a `_target_`, or raises ValueError if that is not allowed.
        given: as in `check`, for the outermost target.
    """
    target = node.get("_target_")
    for mark in node:
        if str(mark).startswith("_") and mark not in _MARKS:
            raise ValueError(f"{_key(path, mark)}: not understood; only {', '.join(_MARKS)} are")
    for mark in ("_partial_", "_recursive_"):
        if not isinstance(node.get(mark, False), bool):
            raise ValueError(f"{_key(path, mark)} must be true or false, not {shown(node[mark])}")
    if node.get("_convert_", "none") not in ("none", "partial", "object", "all"):
        raise ValueError(f"{_key(path, '_convert_')} must be one of none, partial, object, all, not {shown(node['_convert_'])}")
    found = resolve(target, _key(path, "_target_"))

    arguments = {name: with_nodes(value, _key(path, name), resolve) for name, value in node.items() if name not in _MARKS}
    check(found, {name: v for name, v in arguments.items() if v != MISSING}, path, given, node.get("_partial_", False))


def with_nodes(value: Any, key: str, resolve: Callable[[Any, str], Callable[..., Any]]) -> Any:
    """The value with each config node in it checked (see `check_node`) and replaced by a `Node`."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            check_node(value, key, resolve)
            found = resolve(value["_target_"], _key(key, "_target_"))
            is_instance = isinstance(found, type) and not value.get("_partial_", False)
            return Node(str(value["_target_"]), found if is_instance else None)
        return {name: with_nodes(item, _key(key, str(name)), resolve) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_nodes(item, f"{key}[{index}]", resolve) for index, item in enumerate(value)]
    return value


def check_value(parameter: inspect.Parameter, value: Any, key: str) -> None:
    """Raises ValueError unless a value fits its parameter. The default always fits."""
    if parameter.annotation is EMPTY or (parameter.default is not EMPTY and _same(value, parameter.default)):
        return
    nested = _dataclass_in(parameter.annotation)
    if nested is not None and isinstance(value, Mapping):
        check(nested, value, key, given=_given(parameter.annotation))
        return
    if isinstance(value, Mapping) and (inner := _values_of_mapping(parameter.annotation)) is not None:
        for name, item in value.items():  # one by one, so that an error names the item, which may be a dataclass
            check_value(parameter.replace(annotation=inner, default=EMPTY), item, _key(key, str(name)))
        if _dataclass_in(inner) is not None:
            return
    if not fits(parameter.annotation, value):
        raise ValueError(f"{key} must be {describe(parameter.annotation)}, not {shown(value)}")


def check_call(function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the argument, unless all values that are arguments of the function fit its annotations.

    A function calls it first: `check_call(f, locals())`.
    """
    for name, parameter in signature_of(function).parameters.items():
        if name in values:
            check_value(parameter, values[name], name)


def made(target: type, values: Mapping[str, Any], path: str) -> Any:
    """An instance of a dataclass of options, checked; fields that are dataclasses too are made from mappings."""
    check(target, values, path)
    parameters = signature_of(target).parameters

    def field(name: str, value: Any) -> Any:
        nested = _dataclass_in(parameters[name].annotation)
        return made(nested, value, _key(path, name)) if nested is not None and isinstance(value, Mapping) else value

    return target(**{name: field(name, value) for name, value in values.items()})


def signature_of(target: Callable[..., Any]) -> Signature:
    """The signature of a class, a function, a partial, or an object with `__signature__`.

    `**options` of a class in this package stand for the arguments of the next class in its method resolution order; those of
    other callables for anything.
    """
    if isinstance(target, functools.partial):
        inner = signature_of(target.func)
        taken = set(target.keywords) | set(list(inner.parameters)[: len(target.args)])
        return Signature({name: p for name, p in inner.parameters.items() if name not in taken}, inner.is_open)
    if not inspect.isclass(target):
        return _of_function(target, skip=0)
    parameters: dict[str, inspect.Parameter] = {}
    for owner in target.__mro__:
        if "__init__" not in vars(owner):
            continue
        if owner is object:
            return Signature(parameters, bool(parameters) or "__new__" in vars(target))
        found = _of_function(owner.__init__, skip=1)
        parameters = parameters | {name: p for name, p in found.parameters.items() if name not in parameters}
        if not found.is_open or not owner.__module__.startswith("flm."):
            return Signature(parameters, found.is_open)
    return Signature(parameters, True)


def merged(*targets: Callable[..., Any], without: Iterable[str] = ()) -> inspect.Signature:
    """One signature with the keywords of several callables, except those in `without`, for a `__signature__`."""
    found = {name: p for target in targets for name, p in signature_of(target).parameters.items() if name not in set(without)}
    return inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in found.values()])


def nearest(name: str, known: Iterable[str], path: str = "") -> str:
    """ "; did you mean NAME?" with the nearest known name; "" if none is near."""
    close = difflib.get_close_matches(str(name), list(known), 1, 0.6)
    return f"; did you mean {_key(path, close[0])}?" if close else ""


def listing(known: Iterable[str]) -> str:
    names = ", ".join(known)
    return f"; it takes {names}" if names else "; it takes nothing"


def _of_function(function: Callable[..., Any], skip: int) -> Signature:
    try:
        found = list(inspect.signature(function).parameters.values())[skip:]
    except (TypeError, ValueError):  # a built-in, of which nothing is known
        return Signature({}, True)
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):  # annotations that its module does not import, or no function
        hints = {}
    parameters, is_open = {}, False
    for parameter in found:
        if parameter.kind is parameter.VAR_KEYWORD:
            is_open = True
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            annotation = hints.get(parameter.name, parameter.annotation)
            parameters[parameter.name] = parameter.replace(annotation=EMPTY if isinstance(annotation, str) else annotation)
    return Signature(parameters, is_open)


def _key(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else name


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and isinstance(value, str | int | float | bool | None) and value == default


def _given(annotation: Any) -> set[str]:
    notes = [note for _, found in members(annotation) for note in found if isinstance(note, CalledWith)]
    return {name for note in notes for name in note.names}


def _dataclass_in(annotation: Any) -> type | None:
    for kind, _ in members(annotation):
        if inspect.isclass(kind) and dataclasses.is_dataclass(kind):
            return kind
    return None


def _values_of_mapping(annotation: Any) -> Any:
    """The annotation of a mapping's values; None if it is no mapping, or does not name them."""
    for kind, _ in members(annotation):
        inner = typing.get_args(kind)
        if typing.get_origin(kind) in MAPPINGS and len(inner) == 2:
            return inner[1]
    return None
