"""The parts of a training run, built from its config: objects that `_target_` names, data, teachers, and a new model."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from flm.algos.algorithm import Algorithm
from flm.algos.teacher import check_vocabulary_size
from flm.annotations import shown
from flm.checkpoints.build import build_algorithm
from flm.checkpoints.load import check_vocabulary, load_algorithm
from flm.checkpoints.model_file import ModelSource
from flm.data.module import TextDataModule
from flm.data.tokenizers import Tokenizer
from flm.models.layers import missing_fp8
from flm.schema import check_node
from flm.tasks.machine import Machine, compile_networks
from flm.tasks.run import plain_config


def instantiate(node: Any, path: str, **given: Any) -> Any:
    """The object that a node describes, with those nested in it. Nothing is built unless all of them fit.

    Args:
        node: with `_target_`.
        path: its place in the config, as "data", for errors.
        given: further arguments, which the node must not have.

    Raises:
        ValueError: a key, a value or a target is wrong; see `flm.schema`.
    """
    check(node, path, given)
    return hydra.utils.instantiate(node, **given)


def check(node: Any, path: str, given: Mapping[str, Any] | tuple[str, ...] = ()) -> None:
    """Raises ValueError unless a node and those nested in it fit. Builds nothing."""
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(plain, Mapping):
        raise ValueError(f"{path} must be a mapping with _target_, not {plain}")
    check_node(plain, path, resolve, given)


def resolve(target: Any, key: str) -> Any:
    """The class or function with a dotted name; its module is imported. Raises ValueError that names `key`."""
    if not isinstance(target, str) or not target:
        raise ValueError(f"{key} must be the dotted name of a class or function, not {shown(target)}")
    try:
        found = hydra.utils.get_object(target)
    except Exception as error:  # importing a user's module may raise anything
        reason = str(error.__cause__ or error).strip().splitlines()
        raise ValueError(f"{key}={target}: cannot be imported ({reason[-1] if reason else type(error).__name__})") from error
    if not callable(found) or inspect.isbuiltin(found):  # a built-in has no signature to check
        raise ValueError(f"{key}={target} must be a class, or a function written in Python")
    return found


PROBED_BLOCKS = 48  # of the largest network that `probe` builds whole
PROBED_VOCABULARIES = (257, 1 << 20)


def data_module(config: DictConfig) -> TextDataModule:
    """The data module of the corpus and tokenizer in a config."""
    return TextDataModule(
        corpus=instantiate(config.data, "data"),
        tokenizer=instantiate(config.tokenizer, "tokenizer"),
        length=config.model.length,
        seed=config.seed,
        **config.loader,
    )


@dataclass(frozen=True)
class Teacher:
    """A trained model that another learns from, with averaged weights if its file has them.

    Attributes:
        key: the config key that names its file.
        source: the file's description.
    """

    key: str
    model: Algorithm
    source: ModelSource

    def check_vocabulary(self, vocab_size: int, tokenizer: Tokenizer) -> None:
        """Raises ValueError unless it was trained with the tokenizer of the data."""
        try:
            if self.source.tokenizer is not None:
                check_vocabulary(self.source, tokenizer)
        except ValueError as error:
            raise ValueError(f"{self.key}: {error}") from error
        check_vocabulary_size(self.model, vocab_size, self.key)


def teachers_of(config: DictConfig) -> dict[str, Teacher]:
    """The models that keys `algo.<name>_path` name, by <name>, the argument of the algorithm.

    Raises:
        ValueError: a path holds no model.
    """
    plain = plain_config(config)
    named = {key: path for key, path in plain["algo"].items() if key.endswith("_path") and path is not None}
    trusted = plain["eval"]["trusted_modules"]
    return {key.removesuffix("_path"): _teacher(f"algo.{key}", path, trusted) for key, path in named.items()}


def new_algorithm(config: DictConfig, vocab_size: int, teachers: Mapping[str, Teacher] | None = None) -> Algorithm:
    """A new model.

    Its `_target_`s come from the user's own command, so their modules are trusted. Keys `model.<name>_path` name weights to
    start from, which are passed to the network as `<name>`.

    Args:
        teachers: by argument of the algorithm; None: those that the config names are loaded.
    """
    plain = plain_config(config)
    teachers = teachers_of(config) if teachers is None else teachers
    torch.manual_seed(plain["seed"])
    beginnings = {
        key.removesuffix("_path"): path for key, path in plain["model"].items() if key.endswith("_path") and path is not None
    }
    algorithm = build_algorithm(
        plain, vocab_size, trusted_by(plain), beginnings, **{name: one.model for name, one in teachers.items()}
    )
    machine = Machine.of(plain["trainer"], plain["model"])
    if plain["model"].get("fp8"):
        use_fp8(algorithm, machine.device)
    compile_networks(algorithm, machine.compilation, machine.device)
    return algorithm


def use_fp8(algorithm: Algorithm, device: torch.device) -> None:
    """Makes the blocks of an algorithm, but not of its teachers, compute in fp8. ValueError: they cannot on this device."""
    check_fp8(True, device)
    networks = [module for module in algorithm.modules() if hasattr(module, "use_fp8")]
    if not networks:
        raise ValueError(f"model.fp8: the network of {type(algorithm).__name__} has no products in fp8: set model.fp8=false")
    for network in networks:
        network.use_fp8(emulate=device.type != "cuda")


def check_fp8(wanted: Any, device: torch.device) -> None:
    """Raises ValueError unless model.fp8 is false, or true and possible on the device."""
    if not isinstance(wanted, bool):
        raise ValueError(f"model.fp8 must be true or false, not {shown(wanted)}")
    reason = missing_fp8(device) if wanted else None
    if reason is not None:
        raise ValueError(f"model.fp8: {reason}; or set model.fp8=false")


def trusted_by(plain: Mapping[str, Any]) -> list[str]:
    """Modules of the classes that the user's own command names for algorithm and network."""
    return sorted({target.rpartition(".")[0] for node in (plain["algo"], plain["model"]) for target in targets(node)})


def probe(config: DictConfig) -> Algorithm:
    """The model of a config without memory for its weights; ValueError if arguments of algorithm and network do not fit.

    The vocabulary is not known yet, so a small and a large one are tried: an error with both does not depend on it. If the
    network has more than PROBED_BLOCKS blocks, it is built with one.
    """
    plain = plain_config(config)
    if (plain["model"].get("num_blocks") or 0) > PROBED_BLOCKS:
        plain["model"]["num_blocks"] = 1
    for vocab_size in PROBED_VOCABULARIES:
        try:
            with torch.random.fork_rng(devices=[]):
                return build_algorithm(plain, vocab_size, trusted_by(plain), on_meta=True)
        except ValueError as error:
            refusal = error
    raise refusal


def _teacher(key: str, path: str, trusted_modules: list[str]) -> Teacher:
    try:
        return Teacher(key, *load_algorithm(path, None, trusted_modules))
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)
