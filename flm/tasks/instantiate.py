"""Objects from config nodes of the user's own command: what `_target_` names, checked against its signature first."""

import inspect
from collections.abc import Mapping
from typing import Any

import hydra
from omegaconf import OmegaConf

from flm.annotations import shown
from flm.schema import check_node


def instantiate(node: Any, path: str, **given: Any) -> Any:
    """The object of a node, nested ones included; nothing is constructed unless all of them fit.

    Args:
        node: of a config, with `_target_`.
        path: its place in the config, for errors: "data".
        given: further arguments, which the node must not have.

    Raises:
        ValueError: a key, a value or a target is wrong; see `flm.schema`.
    """
    check(node, path, given)
    return hydra.utils.instantiate(node, **given)


def check(node: Any, path: str, given: Mapping[str, Any] | tuple[str, ...] = ()) -> None:
    """Raises ValueError unless a node and all within it can be built; builds nothing."""
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(plain, Mapping):
        raise ValueError(f"{path} must be a mapping with _target_, not {plain}")
    check_node(plain, path, resolve, given)


def resolve(target: Any, key: str) -> Any:
    """The class or function of a dotted name; imports its module. `key` is for errors, which are ValueErrors."""
    if not isinstance(target, str) or not target:
        raise ValueError(f"{key} must be the dotted name of a class or function, not {shown(target)}")
    try:
        found = hydra.utils.get_object(target)
    except Exception as error:  # the import of a module of the user's own may raise anything
        reason = str(error.__cause__ or error).strip().splitlines()
        raise ValueError(f"{key}={target}: cannot be imported ({reason[-1] if reason else type(error).__name__})") from error
    if not callable(found) or inspect.isbuiltin(found):  # a built-in does not say what it takes
        raise ValueError(f"{key}={target} must be a class, or a function written in Python")
    return found
