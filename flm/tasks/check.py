"""Checks the whole config against the signatures that its groups are arguments of, before anything is built or opened.

A group with a `_target_` is checked against that, the others against the callables in ARGUMENTS. For conditions between groups
the module of a mode may have a function `check(config)`, which is called here after all groups were checked.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flm.annotations import shown
from flm.checkpoints.build import check_algorithm
from flm.data.corpora.corpus import Corpus
from flm.data.module import TextDataModule
from flm.data.tokenizers import TokenizerBuilder
from flm.device import autocast
from flm.ranges import Folder, Seed, Text
from flm.schema import MISSING, check, made, nearest, signature_of, with_nodes
from flm.tasks.assemble import check as check_node
from flm.tasks.assemble import check_fp8, resolve, trusted_by
from flm.tasks.evaluation import EvalOptions
from flm.tasks.machine import Machine, compilation, device_of
from flm.tasks.samples import check_sampling
from flm.tasks.train import WandbOptions, resume_path
from flm.tasks.trainer import SET, check_strategy, trainer_options
from flm.training.module import Module
from flm.training.schedules import linear_warmdown

# For each group without a `_target_`: the callable whose arguments it holds, and the arguments that the program passes.
ARGUMENTS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "loader": (TextDataModule, ("corpus", "tokenizer", "length", "seed")),
    "training": (Module, tuple("algorithm optimizer lr_scheduler seed config tokenizer token_counts".split())),
    "checkpointing": (resume_path, ("run_dir",)),
    "trainer": (trainer_options, SET),
    "wandb": (WandbOptions, ()),
    "eval": (EvalOptions, ("tokenizer",)),
}
# For each group with a `_target_`: the class that it must be of, and the arguments that the program passes.
GIVEN: dict[str, tuple[type, tuple[str, ...]]] = {
    "mode": (object, ("config",)),
    "data": (Corpus, ()),
    "tokenizer": (TokenizerBuilder, ()),
    "optim": (Optimizer, ("params",)),
    "lr_scheduler": (LRScheduler, ("optimizer",)),
    "logger": (Logger, ()),
}


def top_level(seed: Seed, run_dir: Folder, wings: Sequence[Text] = ()) -> None:
    """The keys at the top of a config that are not groups."""


def check_config(config: DictConfig) -> None:
    """Raises ValueError, one line that names the key, for the first fault.

    Missing values (`???`) are allowed, since not every mode reads every group.
    """
    _check_added(config)
    for key in config:
        check_group(config, str(key))
    module = importlib.import_module(config.mode._target_.rpartition(".")[0])
    if hasattr(module, "check"):
        module.check(config)
    else:
        machine = Machine.of(config.trainer, config.model)
        autocast(machine.device, machine.precision)  # refuses precisions for training only


def check_group(config: DictConfig, key: str) -> None:
    """As `check_config`, for one group or key at the top of a config."""
    if key in ("algo", "model"):
        _check_model(config)
        return
    node = _plain(config, key)
    if key in CHECKS:
        CHECKS[key](node)
    elif key in ARGUMENTS:
        target, given = ARGUMENTS[key]
        values = {name: with_nodes(value, f"{key}.{name}", resolve) for name, value in _given(node, key).items()}
        check(target, values, key, given, takes=key)
        if is_dataclass(target):
            made(target, values, key)  # raises where options contradict each other
    elif key in signature_of(top_level).parameters:
        check(top_level, {key: node}, "", is_partial=True)
    elif key in GIVEN:
        _check_target(node, key, *GIVEN[key])
    elif isinstance(node, Mapping) and "_target_" in node:
        check_node(node, key)
    elif node is not None and not isinstance(node, Mapping):
        meant = [f"{group}.{key}" for group, below in config.items() if isinstance(below, Mapping) and key in below]
        told = f"did you mean {' or '.join(meant)}?" if meant else f"a group is a mapping of its keys, not {shown(node)}"
        raise ValueError(f"{key}: the config has no value of this name; {told}")


def _check_model(config: DictConfig) -> None:
    """Checks `algo` and `model` together. Missing values are an error only when they are built."""
    plain = {key: _given(_plain(config, key), key) for key in ("algo", "model")}
    check_algorithm(plain, trusted_by(plain), is_complete=False)
    check_group(config, "trainer")  # its device decides what can be compiled
    device = device_of(config.trainer.accelerator)
    compilation(config.model.get("compile"), device)
    check_fp8(config.model.get("fp8", False), device)


def _check_target(node: Any, key: str, kind: type, given: tuple[str, ...] = ()) -> None:
    """Checks a node that makes an object of a class; null switches logger and schedule off."""
    if key in ("logger", "lr_scheduler") and node is None:
        return
    if key == "lr_scheduler" and isinstance(node, Mapping) and "_target_" not in node:
        # switched off too, although another config set a value of the schedule
        check(linear_warmdown, node, key, given, is_partial=True)
        return
    check_node(node, key, given)
    is_partial = bool(given) and key != "mode"
    if bool(node.get("_partial_", False)) != is_partial:
        raise ValueError(
            f"{key}._partial_ must be {str(is_partial).lower()}: {'more' if is_partial else 'nothing'} is added to it"
        )
    target = resolve(node["_target_"], f"{key}._target_")
    if isinstance(target, type) and not issubclass(target, kind):
        raise ValueError(f"{key}._target_={node['_target_']} must be a {kind.__name__}")


def _check_callbacks(node: Any) -> None:
    for name, callback in _given(node, "callbacks").items():
        if name.startswith("_"):
            raise ValueError(f"callbacks.{name}: no name of a callback")
        if isinstance(callback, Mapping) and "_target_" not in callback:
            given = ", ".join(map(str, callback))
            raise ValueError(f"callbacks.{name} is switched off, and then given {given}: callbacks.{name}=null leaves it off")
        if callback is not None:
            completed = isinstance(callback, Mapping) and callback.get("_partial_") is True
            _check_target(callback, f"callbacks.{name}", Callback, ("decode", "reference") if completed else ())


CHECKS: dict[str, Callable[[Any], None]] = {
    "sampling": lambda node: check_sampling(_given(node, "sampling")),
    "strategy": check_strategy,
    "callbacks": _check_callbacks,
}


def _plain(config: DictConfig, key: str) -> Any:
    """A group in plain values, with `???` for values that are missing or refer to a missing one."""
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
    """The values of a group that are not missing."""
    if not isinstance(node, Mapping):
        raise ValueError(f"{key} must be a mapping of its keys, not {shown(node)}")
    if not all(isinstance(name, str) for name in node):
        raise ValueError(f"{key} has keys that are no names: {shown(node)}")
    return {name: value for name, value in node.items() if value != MISSING}


def _check_added(config: DictConfig) -> None:
    """Raises ValueError for a key that the command line adds (`+name`) and nothing reads."""
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    added = {override.lstrip("+").partition("=")[0] for override in given if override.startswith("+")}
    known = {*ARGUMENTS, *GIVEN, *CHECKS, *signature_of(top_level).parameters, "algo", "model"}
    for key in added:
        root = key.partition(".")[0]
        if "/" in key or root not in config or root in known:
            continue
        node = _plain(config, root)
        if not (isinstance(node, Mapping) and "_target_" in node):
            raise ValueError(f"{root}: there is no such key{nearest(root, known)}")
