"""mode=train: trains the model of a config, with checkpoints, metrics and samples under run_dir."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor
from omegaconf import DictConfig
from torch import Tensor

from flm.algos.algorithm import Algorithm
from flm.algos.teacher import missing_teacher
from flm.atomic import check_room
from flm.checkpoints.load import read_description
from flm.data.module import TextDataModule
from flm.handed_in import read_json
from flm.ranges import Text
from flm.samplers.options import check_options
from flm.tasks.assemble import PROBED_BLOCKS, data_module, instantiate, new_algorithm, probe, resolve, teachers_of
from flm.tasks.held_out import one_row_each
from flm.tasks.run import Run, plain_config
from flm.tasks.run_folder import RECORD, Record, alone_in, check_same_run, differences, is_first_process, shown
from flm.tasks.samples import given_options
from flm.tasks.trainer import quiet_lightning, trainer_arguments, trial
from flm.training.checkpointing import AtomicCheckpointIO
from flm.training.module import Module
from flm.training.status import recorded

REFERENCE_BLOCKS = 2000  # most validation blocks that callbacks compare samples with


@dataclass(frozen=True)
class WandbOptions:
    """The group `wandb`, which logger=wandb and the report read."""

    project: Text = "flm"
    name: Text | None = None


def train(config: DictConfig) -> dict[str, Any]:
    """Trains, and returns the last metrics by name.

    Resumes from checkpointing.resume_ckpt_path if that file exists and checkpointing.resume_from_ckpt is true. For a finished
    run it prints that, and returns {}.
    """
    run = Run(config)
    with alone_in(run.folder):
        resume = resume_path(**config.checkpointing, run_dir=config.run_dir)
        if resume is not None and _is_finished(run.config, resume):
            return {}
        return _train(config, run, resume)


def _train(config: DictConfig, run: Run, resume: str | None) -> dict[str, Any]:
    logger = instantiate(config.logger, "logger") if config.logger else False
    data = data_module(config)
    # a student has its teachers' vocabulary, so it can be built before the data are read: a misfit is an early error
    teachers = teachers_of(config)
    algorithm = new_algorithm(config, next(iter(teachers.values())).model.vocab_size, teachers) if teachers else None
    data.prepare()
    for teacher in teachers.values():
        teacher.check_vocabulary(data.vocab_size, data.tokenizer)
    algorithm = new_algorithm(config, data.vocab_size, teachers) if algorithm is None else algorithm
    algorithm.check_ready()
    if algorithm.advice and is_first_process():
        print(f"note: {algorithm.advice}", flush=True)
    module = Module(
        algorithm=algorithm,
        optimizer=instantiate(config.optim, "optim"),
        # a node without a target is switched off, although another config set a value of it
        lr_scheduler=instantiate(config.lr_scheduler, "lr_scheduler") if _is_set(config.lr_scheduler) else None,
        ema=config.training.ema,
        seed=config.seed,
        config=run.config,
        tokenizer=data.tokenizer.to_dict(),
        token_counts=data.token_counts(),
        max_loss_rise=config.training.max_loss_rise,
    )
    record = run.provenance() | {"data_fingerprint": data.corpus.fingerprint()}
    if resume is not None:
        _check_data(run.folder, record["data_fingerprint"], config.checkpointing.allow_changes)
    callbacks = [*_callbacks(config.callbacks, data, config.logger is not None), Record(run.folder, record)]
    if any(isinstance(callback, Checkpoint) for callback in callbacks):
        weights = sum(tensor.nbytes for tensor in algorithm.state_dict().values())
        check_room(run.folder, weights, "a checkpoint")  # at least the weights, even without the optimiser's state
    with quiet_lightning():
        trainer = lightning.Trainer(
            **trainer_arguments(config),
            logger=logger,
            callbacks=callbacks,
            # false if none is ours, or Lightning would add one of its own
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            plugins=[AtomicCheckpointIO()],
        )
    trainer.accumulate_grad_batches = data.accumulation(trainer.world_size)
    # a run shorter than the interval validates once, at its end
    trainer.val_check_interval = min(trainer.val_check_interval, trainer.max_steps * trainer.accumulate_grad_batches)
    if trainer.limit_val_batches:  # Lightning counts batches per process, so more processes would see more examples
        data.valid_limit, trainer.limit_val_batches = trainer.limit_val_batches, 1.0
    with recorded(run.folder, trainer):
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def _is_finished(given: Mapping[str, Any], resume: str) -> bool:
    """Whether the run to resume has already taken all steps; prints allowed differences of the config.

    Args:
        given: the plain config of this command.

    Raises:
        ValueError: a difference makes it another run.
    """
    file, max_steps = read_description(resume), given["trainer"]["max_steps"]
    said = check_same_run(file.config, given, given["checkpointing"]["allow_changes"], resume)
    if not is_first_process():
        return file.step >= max_steps
    for key, old, new in said:
        if not key.startswith("optim."):  # the optimiser's state overrides these, with its own message
            print(f"{resume} goes on with {key}={shown(new)}; until step {file.step} it was {shown(old)}", flush=True)
    if file.step < max_steps:
        return False
    print(
        f"finished: {resume} is of step {file.step}, trainer.max_steps={max_steps}; a larger trainer.max_steps "
        "goes on from it, another hydra.run.dir begins anew",
        flush=True,
    )
    return True


def _check_data(folder: Path, fingerprint: Any, allowed: Sequence[str]) -> None:
    """Raises ValueError if the text that the config names has changed since the run in this folder began."""
    try:
        recorded = read_json(folder / RECORD).get("data_fingerprint")
    except (OSError, ValueError, AttributeError):
        return  # a new folder that resumes another folder's checkpoint, or an old version without fingerprint
    known = json.loads(json.dumps(fingerprint))
    if recorded is not None and recorded != known and "data" not in allowed:
        changed = [key for key, *_ in differences(recorded, known)] or ["its files"]
        raise ValueError(
            f"data: the text has changed since this run began ({', '.join(changed)}): bring it back, name another "
            "hydra.run.dir, or accept the change with checkpointing.allow_changes=[data]"
        )


def check(config: DictConfig) -> None:
    """Raises ValueError for faults of a training config that show without data and teachers."""
    plain = plain_config(config)
    resume_path(**config.checkpointing, run_dir=config.run_dir)
    kind = resolve(config.algo._target_, "algo._target_")
    for name in getattr(kind, "required_teachers", ()):
        if plain["algo"].get(f"{name}_path") is None:
            raise ValueError(missing_teacher(name))
    check_options(kind, given_options(plain["sampling"]), "sampling")
    for name, node in config.callbacks.items():
        if node is not None and node.get("options"):
            check_options(kind, dict(node.options), f"callbacks.{name}.options")
    if _is_set(config.lr_scheduler):
        _check_schedule(config.lr_scheduler, config.trainer.max_steps)
    data_module(config).accumulation(trial(config).world_size)
    _check_optimizer(config, probe(config))


def _check_optimizer(config: DictConfig, model: Algorithm) -> None:
    """Raises ValueError if the optimiser does not take the parameters, by their names, or its arguments contradict."""
    if (config.model.get("num_blocks") or 0) <= PROBED_BLOCKS:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        instantiate(config.optim, "optim")(trained)


def _is_set(node: Mapping[str, Any] | None) -> bool:
    return bool((node or {}).get("_target_"))


def _check_schedule(node: Mapping[str, Any], steps: int) -> None:
    warm_up = node.get("warmup_steps")
    if isinstance(warm_up, int) and warm_up > steps:
        raise ValueError(
            f"lr_scheduler.warmup_steps={warm_up} is more than the run has, trainer.max_steps={steps}: set "
            f"lr_scheduler.warmup_steps={steps // 10}, or leave it out"
        )
    instantiate(node, "lr_scheduler")(torch.optim.SGD([torch.zeros(1)], lr=1.0))


def _callbacks(nodes: Mapping[str, Any], data: TextDataModule, has_logger: bool) -> list[lightning.Callback]:
    """The callbacks. With `_partial_`, arguments `decode` (tokens to texts) and `reference` (validation blocks) are passed."""

    def decode(tokens: Tensor) -> list[str]:
        return [data.tokenizer.decode(row) for row in tokens.tolist()]

    def reference() -> list[list[int]]:
        blocks = data.valid_blocks()
        each = one_row_each(blocks)
        count = min(len(each), REFERENCE_BLOCKS)
        return [blocks[each[i * len(each) // count]].tolist() for i in range(count)]

    callbacks = []
    for name, node in nodes.items():
        if node is None:
            continue
        callback = instantiate(node, f"callbacks.{name}")
        if node.get("_partial_"):
            wanted = inspect.signature(callback.func).parameters
            given = {"decode": lambda: decode, "reference": reference}
            callback = callback(**{name: make() for name, make in given.items() if name in wanted})
        if has_logger or not isinstance(callback, LearningRateMonitor):  # that one needs a logger
            callbacks.append(callback)
    return callbacks


def resume_path(
    resume_from_ckpt: bool, resume_ckpt_path: Text | None, run_dir: str, allow_changes: Sequence[Text] = ()
) -> str | None:
    """The checkpoint to resume from; None: a new run begins.

    Args:
        allow_changes: config keys, or groups of them, that may differ from those of the run that is resumed. Not read here.

    Raises:
        ValueError: there is no such file. The last checkpoint of a run in this folder may be missing.
    """
    if not resume_from_ckpt or resume_ckpt_path is None:
        return None
    if not Path(resume_ckpt_path).exists():
        if Path(resume_ckpt_path) != Path(run_dir) / "checkpoints" / "last.ckpt":  # without that one, a run begins
            raise ValueError(f"checkpointing.resume_ckpt_path={resume_ckpt_path}: there is no such file")
        return None
    return resume_ckpt_path
