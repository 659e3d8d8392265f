"""Lightning's Trainer from the groups `trainer` and `strategy`: allowed ranges, and the arguments that this project sets."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import lightning
from annotated_types import Ge, MinLen
from lightning.pytorch.strategies import Strategy, StrategyRegistry
from omegaconf import DictConfig, OmegaConf

from flm.annotations import shown
from flm.ranges import Count, Index, Positive, Share, Width
from flm.schema import merged, nearest
from flm.tasks.assemble import check as check_node
from flm.tasks.assemble import instantiate, resolve
from flm.tasks.machine import device_of, precision_of
from flm.training.stopping import MaxTime

warnings.filterwarnings("ignore", message="The number of training batches")  # of Lightning, in short runs
# of Lightning about torch, in every run
warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")

# Arguments that a config may not set.
FIXED = {
    "inference_mode": False,  # tensors made in inference mode may outlive validation, and can have no gradients
    "use_distributed_sampler": False,  # the data module divides the data itself
    "check_val_every_n_epoch": None,  # a run is a single epoch of the loader
}
_ARGUMENTS = "logger callbacks strategy plugins enable_checkpointing accumulate_grad_batches default_root_dir barebones"
SET = (*FIXED, *_ARGUMENTS.split())


def trainer_options(
    *,
    accelerator: Literal["auto", "cpu", "gpu", "cuda"] = "auto",
    devices: Literal["auto"] | Width | Annotated[Sequence[Index], MinLen(1)] = "auto",
    num_nodes: Width = 1,
    max_steps: Count = 1_000_000,
    max_time: MaxTime | None = None,
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true", "32", "bf16", "16", "64", 32, 16, 64] | None = None,
    gradient_clip_val: Positive | None = 1.0,
    val_check_interval: Count = 5000,
    limit_val_batches: Index | Share | None = 100,
    num_sanity_val_steps: Annotated[int, Ge(-1)] = 0,
    log_every_n_steps: Count = 50,
    enable_model_summary: bool = False,
    **further: Any,
) -> dict[str, Any]:
    """Arguments of lightning.pytorch.Trainer: these with our ranges, and any `further` one of its signature."""
    return locals() | further


trainer_options.__signature__ = merged(trainer_options, lightning.Trainer, without=SET)  # type: ignore[attr-defined]


def check_strategy(strategy: Any) -> None:
    """Raises ValueError unless it is a strategy's name in Lightning, or the node of a strategy."""
    if isinstance(strategy, Mapping):
        check_node(strategy, "strategy")
        found = resolve(strategy["_target_"], "strategy._target_")
        if isinstance(found, type) and not issubclass(found, Strategy):
            raise ValueError(f"strategy._target_={strategy['_target_']} must be a Strategy of Lightning's")
        return
    known = ["auto", *StrategyRegistry.available_strategies()]
    if strategy not in known:
        near = nearest(strategy, known) if isinstance(strategy, str) else ""
        raise ValueError(
            f"strategy must be auto, ddp, fsdp2, a node with _target_ or a name of Lightning's, not {shown(strategy)}{near}"
        )


def trainer_arguments(config: DictConfig) -> dict[str, Any]:
    """The trainer node with its nested objects built and precision decided."""
    device = device_of(config.trainer.accelerator)  # raises if a GPU is asked for and there is none
    arguments = {
        key: instantiate(value, f"trainer.{key}") if OmegaConf.is_dict(value) and "_target_" in value else value
        for key, value in config.trainer.items()
    }
    if config.callbacks.get("stop") is not None:
        arguments.pop("max_time", None)  # that callback reads it, and saves; Lightning's timer would count resumed time too
    strategy = config.strategy if isinstance(config.strategy, str) else instantiate(config.strategy, "strategy")
    precision = precision_of(config.trainer.precision, device)
    return arguments | FIXED | {"precision": precision, "strategy": strategy, "default_root_dir": config.run_dir}


def trial(config: DictConfig) -> lightning.Trainer:
    """A Trainer without logger and callbacks. It raises if arguments contradict, and knows the number of processes."""
    with quiet_lightning():
        return lightning.Trainer(**trainer_arguments(config), logger=False, enable_checkpointing=False)


@contextmanager
def quiet_lightning():
    """Inside the block, Lightning logs errors only."""
    loggers = [
        logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
