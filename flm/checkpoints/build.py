"""Building models from plain config nodes, where the config may come from a file somebody handed in.

A node is a dict with `_target_`, the dotted name of a class; its other keys are constructor arguments. Only classes of
models, defined in this package or in modules the caller trusts, are ever imported or called.
"""

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from flm.algos.algorithm import Algorithm
from flm.annotations import metadata, shown
from flm.checkpoints.moved import current
from flm.checkpoints.room import Room
from flm.ranges import CalledWith
from flm.registry import inside, trusted
from flm.schema import check_node, nearest, signature_of


def build(node: Mapping[str, Any], trusted_modules: Sequence[str] = (), **extra: Any) -> Any:
    """The object a node describes; nested nodes are built first.

    Args:
        node: `_target_`, arguments, and `_partial_: true` for a functools.partial in place of the object.
        trusted_modules: modules outside `flm` (with all below them) whose classes may be built; the user's word, never
            the checkpoint's.
        extra: further constructor arguments, passed as they are.

    Raises:
        ValueError: the target is not such a class, or does not take these arguments.
    """
    check_node(node, "", _resolver(trusted_modules), extra)
    return _built(node, trusted_modules, extra)


def build_algorithm(
    config: Mapping[str, Any],
    vocab_size: int,
    trusted_modules: Sequence[str] = (),
    model_extra: Mapping[str, Any] | None = None,
    on_meta: bool = False,
    room: Room | None = None,
    **extra: Any,
) -> Algorithm:
    """The algorithm of a resolved config: node `algo`, over the backbone of node `model`.

    Training and loading both come here, so what can be trained can be loaded.

    Args:
        model_extra: further arguments of the backbone that are not saved with the model, as where its first weights come from.
        on_meta: build the backbone without memory for its weights, to see whether it can be built.
        room: the largest model allowed, where a file describes it; None: no limit.
        extra: further arguments of the algorithm that are not plain values, as a teacher.

    Raises:
        ValueError: as `build`; or the config lacks `algo`, `model` or `model.length`; or the model is larger than `room`.
    """
    check_algorithm(config, trusted_modules, model_extra or {}, extra)
    backbone = _built({**_arguments(config["model"]), "_partial_": True}, trusted_modules, model_extra or {})
    backbone = _asked_for_what_it_takes(backbone, config, trusted_modules)
    if on_meta:
        backbone = _on_meta(backbone)
    if room is not None:
        backbone = room.checked(backbone)
    rest = {"backbone": backbone, "vocab_size": vocab_size, "length": config["model"]["length"], **extra}
    with nullcontext() if room is None else room.counted():
        algorithm = _built(_arguments(config["algo"]), trusted_modules, rest)
    if not isinstance(algorithm, Algorithm):
        raise ValueError(f"algo._target_={config['algo']['_target_']} is not an Algorithm")
    return algorithm


def _asked_for_what_it_takes(
    backbone: Callable[..., nn.Module], config: Mapping[str, Any], trusted_modules: Sequence[str]
) -> Callable[..., nn.Module]:
    """The same backbone, with a one-line error if the algorithm passes it an argument that its class does not take.

    Such arguments ask for abilities, as `two_times` and `causal`, that not every network has.
    """
    algorithm, network = (_resolve(config[key]["_target_"], trusted_modules, f"{key}._target_") for key in ("algo", "model"))
    taken = signature_of(network)

    def made(**given: Any) -> nn.Module:
        strange = [name for name in given if not taken.is_open and name not in taken.parameters]
        if strange:
            raise ValueError(
                f"model: {network.__name__} takes no {', '.join(strange)}, which {algorithm.__name__} asks of its network: "
                "take another model, or another algo"
            )
        return backbone(**given)

    return made


def _on_meta(backbone: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def made(**given: Any) -> nn.Module:
        with torch.device("meta"):
            return backbone(**given)

    return made


def check_algorithm(
    config: Mapping[str, Any],
    trusted_modules: Sequence[str] = (),
    model_extra: Iterable[str] = (),
    extra: Iterable[str] = (),
    is_complete: bool = True,
) -> None:
    """Raises ValueError unless the nodes `algo` and `model` of a config fit the signatures of their classes.

    Args:
        model_extra, extra: names of the further arguments of `build_algorithm`.
        is_complete: whether a missing argument is an error.
    """
    for key in ("algo", "model"):
        if not isinstance(config.get(key), Mapping):
            raise ValueError(f"the config has no node {key!r} to build a model from")
    if "length" not in config["model"]:
        raise ValueError("the config has no model.length")
    resolve = _resolver(trusted_modules)
    algorithm, network = (resolve(config[key].get("_target_"), f"{key}._target_") for key in ("algo", "model"))
    backbone = signature_of(algorithm).parameters.get("backbone")
    called = [] if backbone is None else metadata(backbone.annotation, CalledWith)
    for key, target in (("algo", algorithm), ("model", network)):
        _check_paths(config[key], key, target)
    given = {"vocab_size", *model_extra, *(name for note in called for name in note.names)}
    # an algorithm whose annotation does not name what it passes to a network may pass more
    partial_model = {} if is_complete and called else {"_partial_": True}
    check_node(_arguments(config["model"]) | partial_model, "model", resolve, given)
    partial_algorithm = {} if is_complete else {"_partial_": True}
    if not is_complete:  # teachers that will be passed later
        extra = {*extra, *getattr(algorithm, "required_teachers", ())}
    check_node(_arguments(config["algo"]) | partial_algorithm, "algo", resolve, {"backbone", "vocab_size", "length", *extra})


def _check_paths(node: Mapping[str, Any], path: str, target: Callable[..., Any]) -> None:
    """Checks keys `<name>_path`: each is the path of another model, which training loads and passes as `<name>`."""
    taken = signature_of(target)
    for key, value in node.items():
        if str(key).endswith("_path") and not taken.is_open:
            if key.removesuffix("_path") not in taken.parameters:
                known = [f"{name}_path" for name in taken.parameters]
                raise ValueError(f"{path}.{key}: {target.__name__} learns from no such model{nearest(key, known, path)}")
            if value is not None and not (isinstance(value, str) and value):
                raise ValueError(f"{path}.{key} must be a path, or null, not {shown(value)}")


def _arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node without the keys that are no arguments: paths of other models, and `compile` and `fp8`, which the run reads."""
    return {key: value for key, value in node.items() if key not in ("compile", "fp8") and not str(key).endswith("_path")}


def _built(node: Mapping[str, Any], trusted_modules: Sequence[str], extra: Mapping[str, Any]) -> Any:
    arguments = {key: _value(value, trusted_modules) for key, value in node.items() if not str(key).startswith("_")}
    target = _resolve(node["_target_"], trusted_modules)
    return partial(target, **arguments, **extra) if node.get("_partial_") else target(**arguments, **extra)


def _value(value: Any, trusted_modules: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return _built(value, trusted_modules, {})
        return {key: _value(item, trusted_modules) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_value(item, trusted_modules) for item in value]
    return value


def _resolver(trusted_modules: Sequence[str]) -> Callable[[str, str], type[nn.Module]]:
    return lambda target, key: _resolve(target, trusted_modules, key)


def _resolve(target: Any, trusted_modules: Sequence[str], key: str = "_target_") -> type[nn.Module]:
    allowed = trusted(trusted_modules)
    refusal = (
        f"{key}={target} refused: only nn.Module classes defined in {', '.join(allowed)} are built; "
        "to allow more, name their module in eval.trusted_modules"
    )
    if not isinstance(target, str) or "." not in target or not _is_dotted(target):
        raise ValueError(refusal)
    module_name, _, class_name = current(target).rpartition(".")
    if not inside(module_name, allowed):
        raise ValueError(refusal)
    try:
        # all of the path but the last name must be a module: no attribute leads into another package
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not (module_name + ".").startswith(error.name + "."):
            raise  # the module is there, but imports one that is not
        raise ValueError(f"{refusal} (there is no module {error.name})") from error
    found = vars(module).get(class_name)
    if not (inspect.isclass(found) and issubclass(found, nn.Module) and inside(found.__module__, allowed)):
        raise ValueError(refusal)
    return found


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))
