"""Whether what stands where a number belongs is one."""

import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

# Keys of groups that are no constructor's arguments, or of constructors that pass them on.
_NUMBERS: dict[str, tuple[str, ...]] = {
    "": ("seed",),
    "model": ("length",),
    "loader": ("global_batch_size", "batch_size", "eval_batch_size", "num_workers", "max_eval_examples"),
    "optim": ("lr", "adamw_lr", "momentum", "eps", "weight_decay"),
    "training": ("ema", "max_loss_rise"),
    "trainer": ("max_steps", "num_nodes", "gradient_clip_val", "val_check_interval", "log_every_n_steps"),
}


def check_numbers(config: DictConfig, *names: str) -> None:
    """Raises ValueError, naming the key, for text in a place for numbers of the given nodes of the config.

    Places are the arguments of `_target_`s whose annotations allow numbers and no text, and the keys listed here.
    """
    for name in names:
        node = OmegaConf.to_container(config[name]) if OmegaConf.is_config(config[name]) else config[name]
        for key, value in _numbers(name, node):
            if isinstance(value, str) and not value.startswith("${"):
                raise ValueError(f"{key}={value}: a number is needed")


def _numbers(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Each place for a number, with what stands there."""
    if not isinstance(node, Mapping):
        if path in _NUMBERS[""]:
            yield path, node
        return
    named = set(_NUMBERS.get(path, ()))
    if "_target_" in node:
        named |= {name for name, kind in _annotations(node["_target_"]).items() if _takes_only_numbers(kind)}
    for key, value in node.items():
        if key in named:
            yield f"{path}.{key}", value
        elif isinstance(value, Mapping):
            yield from _numbers(f"{path}.{key}", value)


def _annotations(target: str) -> dict[str, Any]:
    found = hydra.utils.get_object(target)
    function = found.__init__ if inspect.isclass(found) else found
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # of a class of the user's own that names what it does not import: nothing is known
        return {}


def _takes_only_numbers(kind: Any) -> bool:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        kinds = typing.get_args(kind)
    else:
        kinds = (kind,)
    return bool({int, float} & set(kinds)) and str not in kinds
