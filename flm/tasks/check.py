"""The whole config against the signatures of what will read it, before anything is read, built or opened.

Groups with a `_target_` are checked against it; the others against what they are the arguments of. What depends on two groups
is the business of the mode: its module may have a function `check(config)`, called here once every group is sound by itself.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError

from flm.annotations import shown
from flm.checkpoints.build import check_algorithm
from flm.data.module import TextDataModule
from flm.precision import autocast
from flm.ranges import Seed, Text
from flm.schema import MISSING, check, nearest, signature_of, with_nodes
from flm.tasks.assemble import trusted_by
from flm.tasks.benchmark import BenchmarkOptions
from flm.tasks.eval_options import EvalOptions
from flm.tasks.instantiate import check as check_node
from flm.tasks.instantiate import resolve
from flm.tasks.machine import Machine, compile_mode
from flm.tasks.samples import check_sampling
from flm.tasks.train import WandbOptions, resume_path
from flm.tasks.trainer import SET, check_strategy, trainer_options
from flm.training.module import Module

# What the groups without a `_target_` are arguments of, and which of its arguments the program gives itself.
ARGUMENTS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "loader": (TextDataModule, ("corpus", "tokenizer", "length", "seed")),
    "training": (Module, tuple("algorithm optimizer lr_scheduler seed config tokenizer token_counts".split())),
    "checkpointing": (resume_path, ("run_dir",)),
    "trainer": (trainer_options, SET),
    "benchmark": (BenchmarkOptions, ()),
    "wandb": (WandbOptions, ()),
    "eval": (EvalOptions, ("tokenizer",)),
}
# Nodes with a `_target_`, and what the program gives beside them.
GIVEN: dict[str, tuple[str, ...]] = {
    "mode": ("config",),
    "data": (),
    "tokenizer": (),
    "optim": ("params",),
    "lr_scheduler": ("optimizer",),
    "logger": (),
}
OPTIONAL = ("lr_scheduler", "logger")  # null, or a mapping without a target, switches them off


def top_level(seed: Seed, run_dir: Text, wings: Sequence[Text] = ()) -> None:
    """The keys of a config that are no groups."""


def check_config(config: DictConfig) -> None:
    """Raises ValueError, one line that names the key, for the first thing that cannot be.

    Values that are still to be given (`???`) are let pass: not every mode reads every group.
    """
    plain = {key: _plain(config, key) for key in config}
    _check_added(plain)
    check(top_level, {key: plain[key] for key in signature_of(top_level).parameters if key in plain}, "")
    for key, node in plain.items():
        if key in CHECKS:
            CHECKS[key](node)
        elif key in ARGUMENTS:
            target, given = ARGUMENTS[key]
            values = {name: with_nodes(value, f"{key}.{name}", resolve) for name, value in _given(node, key).items()}
            check(target, values, key, given, takes=key)
        elif key in GIVEN and not (node is None and key in OPTIONAL) and not (key in OPTIONAL and "_target_" not in node):
            check_node(node, key, GIVEN[key])
        elif isinstance(node, Mapping) and "_target_" in node and key not in ("algo", "model"):
            check_node(node, key)
    _check_model(config)
    module = importlib.import_module(plain["mode"]["_target_"].rpartition(".")[0])
    if hasattr(module, "check"):
        module.check(config)
    else:
        machine = Machine.of(config.trainer, config.model)
        autocast(machine.device, machine.precision)  # refuses those that only training takes


def _check_model(config: DictConfig) -> None:
    """The nodes `algo` and `model` together; what they still lack is asked for when they are built."""
    plain = {key: {name: v for name, v in _given(_plain(config, key), key).items()} for key in ("algo", "model")}
    check_algorithm(plain, trusted_by(plain), is_complete=False)
    compile_mode(config.model.get("compile"))


def _check_callbacks(node: Any) -> None:
    for name, callback in _given(node, "callbacks").items():
        if callback is not None:
            completed = isinstance(callback, Mapping) and callback.get("_partial_") is True
            check_node(callback, f"callbacks.{name}", ("decode", "reference") if completed else ())


CHECKS: dict[str, Callable[[Any], None]] = {
    "sampling": lambda node: check_sampling(_given(node, "sampling")),
    "strategy": check_strategy,
    "callbacks": _check_callbacks,
}


def _plain(config: DictConfig, key: str) -> Any:
    """A group in plain values, with `???` where a value is missing or refers to one that is."""
    node = config._get_node(key)
    if not OmegaConf.is_config(node):
        return config[key]
    try:
        return OmegaConf.to_container(node, resolve=True)
    except InterpolationToMissingValueError:
        return {name: MISSING if _refers_to_missing(node, name) else _plain(node, name) for name in node}


def _refers_to_missing(node: DictConfig, name: str) -> bool:
    try:
        return OmegaConf.is_missing(node, name)
    except InterpolationToMissingValueError:
        return True


def _given(node: Any, key: str) -> dict[str, Any]:
    """The values of a group that are there."""
    if not isinstance(node, Mapping):
        raise ValueError(f"{key} must be a mapping of its keys, not {shown(node)}")
    return {name: value for name, value in node.items() if value != MISSING}


def _check_added(plain: Mapping[str, Any]) -> None:
    """Groups that the command line adds (`+name`) and nobody reads."""
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    added = {override.lstrip("+").partition("=")[0] for override in given if override.startswith("+")}
    for key in added:
        root = key.partition(".")[0]
        if (
            "/" in key
            or root not in plain
            or root in signature_of(top_level).parameters
            or root in {*ARGUMENTS, *GIVEN, *CHECKS}
        ):
            continue
        if not (isinstance(plain[root], Mapping) and "_target_" in plain[root]):
            raise ValueError(f"{root}: there is no such key{nearest(root, [*ARGUMENTS, *GIVEN, *CHECKS])}")
