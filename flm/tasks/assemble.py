"""From a composed config to objects: what the tasks share."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

import flm
from flm.algos.algorithm import Algorithm
from flm.checkpoints.build import build_algorithm
from flm.checkpoints.load import check_vocabulary, load_algorithm
from flm.data.module import TextDataModule
from flm.data.tokenizers import Tokenizer
from flm.language_model import LanguageModel
from flm.precision import autocast, device_named, precision_on
from flm.tasks.compiled import compile_networks
from flm.tasks.import_choices import import_choices
from flm.tasks.instantiate import instantiate, resolve

PROBED_VOCABULARIES = (257, 1 << 20)


def data_module(config: DictConfig) -> TextDataModule:
    """Corpus and tokenizer of the config behind one data module."""
    return TextDataModule(
        corpus=instantiate(config.data, "data"),
        tokenizer=instantiate(config.tokenizer, "tokenizer"),
        length=config.model.length,
        seed=config.seed,
        **config.loader,
    )


def new_algorithm(config: DictConfig, vocab_size: int, tokenizer: Tokenizer | None = None) -> Algorithm:
    """A fresh model, with the teachers that `algo.<name>_path` keys name and the beginnings that `model.<name>_path` keys do.

    Its `_target_`s come from the user's own command, so their modules are trusted.
    """
    plain = plain_config(config)
    teachers = {}
    for key, path in plain["algo"].items():
        if key.endswith("_path") and path is not None:
            teachers[key.removesuffix("_path")] = _teacher(f"algo.{key}", path, config, tokenizer)
    torch.manual_seed(config.seed)
    beginnings = {
        key.removesuffix("_path"): path for key, path in plain["model"].items() if key.endswith("_path") and path is not None
    }
    algorithm = build_algorithm(plain, vocab_size, trusted_by(plain), beginnings, **teachers)
    compile_networks(algorithm, config, device_of(config))
    return algorithm


def trusted_by(plain: Mapping[str, Any]) -> list[str]:
    """Modules that the user's own command names for its model."""
    return sorted({target.rpartition(".")[0] for node in (plain["algo"], plain["model"]) for target in targets(node)})


def algorithm_class(config: DictConfig) -> type[Algorithm]:
    """What `algo._target_` names, once the config was checked."""
    return resolve(config.algo._target_, "algo._target_")


def probe(config: DictConfig) -> None:
    """Raises ValueError where arguments of the algorithm or its network do not go together.

    Builds them with one block and without memory for the network, for a small and a large vocabulary: what both refuse does
    not depend on the tokens that the data will turn out to have.
    """
    plain = plain_config(config)
    if "num_blocks" in plain["model"]:
        plain["model"]["num_blocks"] = 1
    for vocab_size in PROBED_VOCABULARIES:
        try:
            with torch.random.fork_rng(devices=[]):
                build_algorithm(plain, vocab_size, trusted_by(plain), on_meta=True)
            return
        except ValueError as error:
            refusal = error
    raise refusal


def _teacher(key: str, path: str, config: DictConfig, tokenizer: Tokenizer | None) -> Algorithm:
    """A trained model, averaged weights where it has them, of the tokenizer the student will be trained with."""
    try:
        teacher, file = load_algorithm(path, None, config.eval.trusted_modules)
        if tokenizer is not None and file.tokenizer is not None:
            check_vocabulary(file, tokenizer)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    return teacher


def load_for_evaluation(config: DictConfig) -> LanguageModel:
    """The model of eval.checkpoint_path, on the device of the config."""
    path = config.eval.checkpoint_path
    if path is None:
        raise ValueError("eval.checkpoint_path is not set: name the checkpoint to use")
    device = device_of(config)
    lm = flm.load(
        path, device, not config.eval.disable_ema, config.eval.trusted_modules, **dataclasses.asdict(import_choices(config))
    )
    compile_networks(lm.algorithm, config, device)
    lm.precision = precision_of(config)
    return lm


def device_of(config: DictConfig) -> torch.device:
    """What trainer.accelerator means: CUDA where it is, unless cpu is asked for.

    Raises:
        ValueError: it asks for a GPU and there is none.
    """
    wanted = config.trainer.accelerator
    return device_named(None if wanted == "auto" else wanted, "trainer.accelerator")


def precision_of(config: DictConfig) -> str:
    """trainer.precision; null is bf16-mixed on CUDA, and 32-true elsewhere, where bf16 is slower."""
    wanted = config.trainer.precision
    return precision_on(device_of(config), None if wanted is None else str(wanted))


def inference_precision(config: DictConfig) -> AbstractContextManager[Any]:
    """What networks compute in for tasks that run without a Trainer: autocast as trainer.precision asks, or nothing."""
    return autocast(device_of(config), precision_of(config))


def plain_config(config: DictConfig) -> dict[str, Any]:
    """Resolved, in plain types; every value the run used."""
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    return resolved


def run_dir(config: DictConfig) -> Path:
    path = Path(config.run_dir)
    path.mkdir(parents=True, exist_ok=True)
    return path


def targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)
