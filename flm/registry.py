"""What wings add to the core: packages with models, data, modes and results of their own. The core imports none of them.

A wing is a package with a module `wing` that holds `WING`, a `Wing`. Three sorts are found: packages inside `flm`, entry points
of the group `flm.wings` in installed packages, and packages passed to `add` (the config key `wings`).
"""

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

GROUP = "flm.wings"


@dataclass(frozen=True)
class Wing:
    """What one package adds. A value is "module:name", imported at first use: finding wings imports nothing heavy.

    Attributes:
        model_files: further kinds of model file by name; each an object with `matches(path) -> bool` and
            `read(path) -> (Description, state dict)`, and `describe(path) -> Description` if that can do without the weights.
        transformers_models: by name, `find(algorithm) -> object or None`: models whose network transformers itself opens.
        checkpoint_layouts: by name, how others write checkpoints; each an object with `matches(content) -> bool` of a loaded
            file, and `read(content, name, choices, base) -> (Description, state dict)`; see `flm.checkpoints.foreign`.
        published_models: by the name that `eval.imported_as` takes, a `flm.checkpoints.foreign.Kind` of others' checkpoints.
        judges: by the name that `eval.scorer` takes, `make(path, device, batch_size) -> flm.judges.gen_ppl.Scorer`; path is
            eval.scorer_checkpoint_path, which may be None.
        accelerations: by the name that `eval.acceleration` takes, `apply(algorithm, device)`, which changes how the networks
            of a loaded model are evaluated, or raises ValueError if it cannot.
        result_kinds: by the `kind` in a result file, a `flm.results.kinds.ResultKind`: how it is read and shown.
        commands: `run(arguments) -> exit status` by the word behind `flm`; the first line of its docstring is shown as help.
        resolvers: functions for interpolations in configs, `${name:argument}`.
        configs: a Hydra search path with further options of config groups, "pkg://package.configs"; None: none.
    """

    model_files: Mapping[str, str] = field(default_factory=dict)
    transformers_models: Mapping[str, str] = field(default_factory=dict)
    checkpoint_layouts: Mapping[str, str] = field(default_factory=dict)
    published_models: Mapping[str, str] = field(default_factory=dict)
    judges: Mapping[str, str] = field(default_factory=dict)
    accelerations: Mapping[str, str] = field(default_factory=dict)
    result_kinds: Mapping[str, str] = field(default_factory=dict)
    commands: Mapping[str, str] = field(default_factory=dict)
    resolvers: Mapping[str, str] = field(default_factory=dict)
    configs: str | None = None


_added: dict[str, Wing] = {}


def add(package: str) -> Wing:
    """Registers a package for the rest of the process. Doing so twice is the same as once.

    Raises:
        ValueError: there is no such package, or it is no wing.
    """
    if package not in _added:
        try:
            found = getattr(importlib.import_module(f"{package}.wing"), "WING", None)
        except ModuleNotFoundError as error:
            raise ValueError(f"wings: {package} is no wing: there is no module {error.name}") from error
        if not isinstance(found, Wing):
            raise ValueError(f"wings: {package}.wing holds no WING, a flm.registry.Wing")
        _added[package] = found
    return _added[package]


def wings() -> dict[str, Wing]:
    """All wings by package."""
    for package in _found():
        add(package)
    return dict(_added)


def entries(kind: str) -> dict[str, str]:
    """The entries of all wings under one attribute of `Wing`: "module:name" by name."""
    return {name: value for wing in wings().values() for name, value in getattr(wing, kind).items()}


def trusted(modules: Iterable[str] = ()) -> tuple[str, ...]:
    """Packages whose classes a model file may name: this one, the wings, and the modules that the user trusts."""
    return ("flm", *wings(), *modules)


def inside(module: str, packages: Iterable[str]) -> bool:
    """Whether a module is one of these packages or inside one, by its dotted name."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def load(entry: str) -> Any:
    """The object that "module:name" stands for."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def objects(kind: str) -> Iterator[tuple[str, Any]]:
    """Name and object of each entry of a kind, imported one by one."""
    for name, entry in entries(kind).items():
        yield name, load(entry)


@cache
def _found() -> list[str]:
    here = Path(__file__).parent
    inside = [f"flm.{item.name}" for item in pkgutil.iter_modules([str(here)]) if (here / item.name / "wing.py").is_file()]
    return inside + [entry.value for entry in metadata.entry_points(group=GROUP)]
