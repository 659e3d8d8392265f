"""All keys of all groups of the config, found by composing options and reading signatures, and values to try."""

import copy
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from running import config_of

from flm.config_files import CONFIGS
from flm.schema import signature_of
from flm.tasks.assemble import resolve
from flm.tasks.check import ARGUMENTS, GIVEN

NESTED: dict[str, Any] = {"a": {"b": {"c": [1, {"d": None}]}}}
VALUES: list[Any] = [
    "junk", "", " ", "no", "off", "3", "nan", True, False, -1, 0, 1, 0.5, -0.5, 1.5, 2.0, 10**12, 10**30, math.nan, math.inf,
    -math.inf, 1e300, None, [], [None], ["junk"], [0.5], [-1], [[]], {}, {"junk": 1}, {1: 2}, NESTED, {"_target_": "os.getcwd"},
    {"_target_": "no.such.Thing"}, {"_target_": 3}, {"_target_": "flm.models.dit.DiT", "junk": 1}, {"_target_": None},
]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """One key: the overrides of a command whose config has it, and its path there."""

    overrides: tuple[str, ...]
    path: str
    identity: str  # the same for a key that several options share


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def text_of(override: str) -> str:
    group, _, option = override.partition("=")
    return (CONFIGS / group / f"{option}.yaml").read_text(encoding="utf-8")


def places() -> Iterator[Place]:
    """Every key once: by the target that takes it, or by its path where none does."""
    seen: set[str] = set()
    recipes = ("experiment", "debug", "local")  # values for the keys of the other groups
    groups = sorted(folder.name for folder in CONFIGS.iterdir() if folder.is_dir() and folder.name not in recipes)
    bases = [("debug=tiny",)] + [("debug=tiny", f"{group}={option}") for group in groups for option in options(group)]
    targets: set[str] = set()
    for base in bases:
        found = set(re.findall(r"_target_: *([\w.]+)", text_of(base[-1]))) or {base[-1]}
        if found <= targets:
            continue  # composing takes a fifth of a second
        targets |= found
        try:
            config = config_of(Path("run"), *base)
        except Exception as error:  # an option of no mode alone
            raise AssertionError(f"{base} does not compose: {error}") from error
        for path, identity in keys_of(config):
            if identity not in seen:
                seen.add(identity)
                yield Place(base, path, identity)


def keys_of(node: DictConfig, path: str = "", root: str = "") -> Iterator[tuple[str, str]]:
    target = node._get_node("_target_") if "_target_" in node else None
    name = str(target._value()) if target is not None else root or path
    known = {key: f"{name}.{key}" for key in node}
    if target is not None or path in ARGUMENTS:
        kind, given = (resolve(name, path), GIVEN.get(path, (object, ()))[1]) if target is not None else ARGUMENTS[path]
        for key in signature_of(kind).parameters:
            if key not in given:
                known.setdefault(key, f"{name}.{key}")
    for key, identity in known.items():
        here = f"{path}.{key}" if path else str(key)
        yield here, identity
        child = node._get_node(key) if key in node else None
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing() and not child._is_interpolation():
            yield from keys_of(child, here, identity)


@contextmanager
def changed(config: DictConfig, path: str, value: Any) -> Iterator[DictConfig]:
    """The config with another value, for as long as the context lasts."""
    parent, _, key = path.rpartition(".")
    with open_dict(config):
        node = OmegaConf.select(config, parent) if parent else config
        before = copy.deepcopy(node._get_node(key))  # an update changes the node itself
        OmegaConf.update(config, path, value, merge=True, force_add=True)  # as the command line does
        try:
            yield config
        finally:
            node.pop(key, None) if before is None else node._set_item_impl(key, before)
