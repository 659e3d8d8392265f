"""mode=train: a config becomes a trained model, its checkpoints, metrics and samples under run_dir."""

from pathlib import Path
from typing import Any

import hydra
import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from omegaconf import DictConfig
from torch import Tensor

from flm.tasks.assemble import data_module, new_algorithm, plain_config, run_dir
from flm.tasks.results import provenance, write_json
from flm.training.checkpointing import AtomicCheckpointIO
from flm.training.module import Module


def train(config: DictConfig) -> dict[str, Any]:
    """Trains, and returns the last metrics by name.

    Goes on from checkpointing.resume_ckpt_path if that file exists and checkpointing.resume_from_ckpt allows.
    """
    folder = run_dir(config)
    data = data_module(config)
    data.prepare()
    module = Module(
        algorithm=new_algorithm(config, data.vocab_size),
        optimizer=hydra.utils.instantiate(config.optim),
        lr_scheduler=hydra.utils.instantiate(config.lr_scheduler) if config.lr_scheduler else None,
        ema=config.training.ema,
        seed=config.seed,
        config=plain_config(config),
        tokenizer=data.tokenizer.to_dict(),
        token_counts=data.token_counts(),
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
    trainer.fit(module, datamodule=data, ckpt_path=_resume_path(config), weights_only=True)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def trainer_arguments(config: DictConfig) -> dict[str, Any]:
    """The trainer node with its nested objects built and precision decided."""
    arguments = dict(hydra.utils.instantiate(config.trainer))
    if arguments["precision"] is None:
        on_cuda = torch.cuda.is_available() and config.trainer.accelerator != "cpu"
        arguments["precision"] = "bf16-mixed" if on_cuda else "32-true"
    strategy = config.strategy
    arguments["strategy"] = strategy if isinstance(strategy, str) else hydra.utils.instantiate(strategy)
    return arguments


def _callbacks(config: DictConfig, data) -> list[lightning.Callback]:
    def decode(tokens: Tensor) -> list[str]:
        return [data.tokenizer.decode(row) for row in tokens.tolist()]

    callbacks = []
    for node in config.callbacks.values():
        if node is None or (config.logger is None and "LearningRateMonitor" in node._target_):
            continue
        callback = hydra.utils.instantiate(node)
        callbacks.append(callback(decode=decode) if node.get("_partial_") else callback)
    return callbacks


def _resume_path(config: DictConfig) -> str | None:
    path = config.checkpointing.resume_ckpt_path
    if not config.checkpointing.resume_from_ckpt or path is None or not Path(path).exists():
        return None
    return str(path)
