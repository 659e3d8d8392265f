"""mode=train: a config becomes a trained model, its checkpoints, metrics and samples under run_dir."""

import inspect
from pathlib import Path
from typing import Any

import hydra
import lightning
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor
from omegaconf import DictConfig
from torch import Tensor

from flm.checkpoints.build import check_algorithm
from flm.data.module import TextDataModule
from flm.tasks.argument_types import check_numbers
from flm.tasks.assemble import data_module, device_of, new_algorithm, plain_config, precision_of, run_dir, trusted_by
from flm.tasks.results import provenance, write_json
from flm.training.checkpointing import AtomicCheckpointIO
from flm.training.module import Module

REFERENCE_BLOCKS = 2000  # of validation text, at most, that callbacks compare samples with


def train(config: DictConfig) -> dict[str, Any]:
    """Trains, and returns the last metrics by name.

    Goes on from checkpointing.resume_ckpt_path if that file exists and checkpointing.resume_from_ckpt allows.
    """
    check_numbers(config, "optim", "lr_scheduler", "trainer", "training", "callbacks", "seed")
    plain = plain_config(config)
    check_algorithm(plain, trusted_by(plain))
    folder = run_dir(config)
    data = data_module(config)
    data.prepare()
    module = Module(
        algorithm=new_algorithm(config, data.vocab_size, data.tokenizer),
        optimizer=hydra.utils.instantiate(config.optim),
        # without a target: switched off, and some other config set one of its values
        lr_scheduler=hydra.utils.instantiate(config.lr_scheduler) if (config.lr_scheduler or {}).get("_target_") else None,
        ema=config.training.ema,
        seed=config.seed,
        config=plain_config(config),
        tokenizer=data.tokenizer.to_dict(),
        token_counts=data.token_counts(),
        max_loss_rise=config.training.max_loss_rise,
    )
    write_json(folder / "run.json", provenance(config))

    callbacks = _callbacks(config, data)
    trainer = lightning.Trainer(
        **trainer_arguments(config),
        logger=hydra.utils.instantiate(config.logger) if config.logger else False,
        callbacks=callbacks,
        # without one of ours, Lightning would add a checkpoint callback of its own
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        plugins=[AtomicCheckpointIO()],
    )
    trainer.accumulate_grad_batches = data.accumulation(trainer.world_size)
    if isinstance(trainer.val_check_interval, int):  # a run shorter than the interval ends with its one validation
        batches = trainer.max_steps * trainer.accumulate_grad_batches
        trainer.val_check_interval = max(1, min(trainer.val_check_interval, batches))
    trainer.fit(module, datamodule=data, ckpt_path=_resume_path(config), weights_only=True)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def trainer_arguments(config: DictConfig) -> dict[str, Any]:
    """The trainer node with its nested objects built and precision decided."""
    device_of(config)  # refuses a GPU that is not there
    arguments = dict(hydra.utils.instantiate(config.trainer))
    if config.callbacks.get("stop") is not None:
        arguments.pop("max_time", None)  # that callback's, which saves; Lightning's timer goes on counting after a resume
    arguments["precision"] = precision_of(config)
    if str(arguments["precision"]).endswith("-true") and not str(arguments["precision"]).startswith(("32", "64")):
        raise ValueError(
            f"trainer.precision={arguments['precision']} would train low-precision weights: use bf16-mixed or 16-mixed"
        )
    strategy = config.strategy
    arguments["strategy"] = strategy if isinstance(strategy, str) else hydra.utils.instantiate(strategy)
    return arguments


def _callbacks(config: DictConfig, data: TextDataModule) -> list[lightning.Callback]:
    """What `_partial_` callbacks ask for by argument name: `decode`, texts of tokens; `reference`, validation blocks."""

    def decode(tokens: Tensor) -> list[str]:
        return [data.tokenizer.decode(row) for row in tokens.tolist()]

    def reference() -> list[list[int]]:
        blocks = data.valid_blocks()
        count = min(len(blocks), REFERENCE_BLOCKS)
        return [blocks[i * len(blocks) // count].tolist() for i in range(count)]

    callbacks = []
    for node in config.callbacks.values():
        if node is None:
            continue
        callback = hydra.utils.instantiate(node)
        if node.get("_partial_"):
            wanted = inspect.signature(callback.func).parameters
            given = {"decode": lambda: decode, "reference": reference}
            callback = callback(**{name: make() for name, make in given.items() if name in wanted})
        if not (isinstance(callback, LearningRateMonitor) and config.logger is None):  # it refuses to run without one
            callbacks.append(callback)
    return callbacks


def _resume_path(config: DictConfig) -> str | None:
    path = config.checkpointing.resume_ckpt_path
    if not config.checkpointing.resume_from_ckpt or path is None:
        return None
    if not Path(path).exists():
        if Path(path) != Path(config.run_dir) / "checkpoints" / "last.ckpt":  # absent there, a run simply begins
            raise ValueError(f"checkpointing.resume_ckpt_path={path}: there is no such file")
        return None
    return str(path)
