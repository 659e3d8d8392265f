"""A model as a Hugging Face folder, and back from one: weights as safetensors, everything else as JSON; nothing is executed.

The folder holds all that a checkpoint says of itself but the state of training. `config.json` names the networks inside the
weights, so that the modeling file beside it opens them without this package.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from flm import atomic
from flm.algos.algorithm import Algorithm
from flm.checkpoints.build import build_algorithm
from flm.checkpoints.description import package_version
from flm.checkpoints.load import CheckpointFile, check_state
from flm.data.tokenizers import Tokenizer
from flm.models.causal import CausalTransformer
from flm.models.dit import DiT
from flm.qwen.transformers_model import CODE, transformers_model
from flm.samplers.template import CANVAS_KEYS

FORMAT_VERSION = 1
WEIGHTS, CONFIG, CARD, GENERATION = "model.safetensors", "config.json", "README.md", "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
MODELING = "modeling_flm.py"
READ = (WEIGHTS, CONFIG, TOKENIZER, GENERATION)  # what `read_folder` needs
FILES = (*READ, TOKENIZER_CONFIG, MODELING, CARD)
MAY_TRAVEL = (*FILES, *CODE)
# Parts of a config that say where and when a run was made, not what was done.
_OF_THE_RUN = ("run_dir", "mode", "eval", "report", "benchmark", "callbacks", "logger", "wandb", "checkpointing", "strategy")
_DEFAULT_STEPS = 64


@dataclass(frozen=True)
class Exported:
    """What a folder holds beside the model.

    Attributes:
        config: the recipe the model was trained with, plain values.
        tokenizer: Tokenizer.to_dict().
        generation: as `generation_defaults`.
        step: optimiser steps taken.
    """

    path: Path
    config: dict[str, Any]
    tokenizer: dict[str, Any]
    generation: dict[str, Any]
    step: int


def write_folder(folder: Path, algorithm: Algorithm, file: CheckpointFile, averaged: bool, card: str) -> None:
    """Writes all of FILES; config.json comes last, so that a folder cut short is not taken for a model.

    The network of a `transformers_model` becomes the folder's own: with the names and config that its code, which then is
    what travels, reads.

    Args:
        algorithm: the model of `file`, holding the weights to write.
        averaged: whether those are the averaged ones; for the record.
        card: content of README.md.
    """
    assert file.tokenizer is not None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    own = transformers_model(algorithm)
    state = algorithm.state_dict() if own is None else own.to_folder(algorithm.state_dict())
    # clones: safetensors takes no two names for one storage, as tied weights are
    weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    with atomic.draft(folder / WEIGHTS) as partial:
        safetensors.torch.save_file(weights, partial, metadata={"format": "pt"})
    tokenizer = _cut({key: value for key, value in file.tokenizer.items() if key != "json"})
    atomic.write_text(folder / TOKENIZER, file.tokenizer["json"])
    shutil.copymode(folder / TOKENIZER, folder / WEIGHTS)  # safetensors makes files that only their owner may read
    _write_json(folder / TOKENIZER_CONFIG, _tokenizer_config(file.tokenizer, algorithm.length))
    special = {f"{name}_token_id": tokenizer[f"{name}_id"] for name in ("bos", "eos", "pad")}
    generation = generation_defaults(file.config)
    _write_json(folder / GENERATION, special | {"flm": generation})
    for file_of_code in [Path(__file__).parent / "hf_code" / MODELING] if own is None else own.code:
        atomic.write_text(folder / file_of_code.name, file_of_code.read_text(encoding="utf-8"))
    atomic.write_text(folder / CARD, card)
    networks = networks_of(algorithm)
    opens = {
        "architectures": ["FlowLanguageModel"],
        "auto_map": {
            "AutoConfig": f"{MODELING.removesuffix('.py')}.FlowLanguageModelConfig",
            "AutoModel": f"{MODELING.removesuffix('.py')}.FlowLanguageModel",
        },
    }
    config = {
        "model_type": "flm",
        **(opens if networks else {}),
        "dtype": "float32",
        "vocab_size": algorithm.vocab_size,
        "length": algorithm.length,
        **special,
        "networks": networks,
        **({} if own is None else own.config(algorithm, generation["steps"])),
        "flm": {
            "format_version": FORMAT_VERSION,
            "vocab_size": algorithm.vocab_size,
            "package_version": package_version(),
            "step": file.step,
            "weights": "average" if averaged else "last step",
            "checkpoint_sha256": file.sha256,
            "tokenizer": tokenizer,
            "config": shareable(file.config),
        },
    }
    _write_json(folder / CONFIG, config)


def read_folder(folder: str | Path, trusted_modules: Sequence[str] = ()) -> tuple[Algorithm, Exported]:
    """The model of a folder, on the CPU, in evaluation mode.

    Args:
        trusted_modules: as in `flm.checkpoints.build.build`.

    Raises:
        ValueError: a file is missing or damaged, is of another format, or describes a model this code cannot build or the
            weights do not fit.
    """
    folder = Path(folder)
    content = _read_json(folder / CONFIG)
    own = content.get("flm")
    if not isinstance(own, dict):
        raise ValueError(f"{folder / CONFIG}: not a model of this project: it has no key 'flm'")
    if own.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{folder / CONFIG}: folder format {own.get('format_version')!r}, written by version "
            f"{own.get('package_version')!r}; this code reads format {FORMAT_VERSION}: use the version that wrote it"
        )
    types = {"config": dict, "tokenizer": dict, "step": int}
    damaged = [key for key, kind in types.items() if not isinstance(own.get(key), kind)]
    if damaged or not isinstance(content.get("vocab_size"), int):
        raise ValueError(f"{folder / CONFIG}: damaged: {', '.join(damaged) or 'vocab_size'} missing or of another type")
    for name in (WEIGHTS, TOKENIZER):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: not a whole exported model: {name} is missing")
    try:
        vocab_size = own.get("vocab_size", content["vocab_size"])  # a table may have rows to spare
        algorithm = build_algorithm(own["config"], vocab_size, trusted_modules)
    except Exception as error:  # constructors raise anything for values that make no sense: too much memory, a width of 0
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{folder / CONFIG}: no model can be built from it: {reason}") from error
    try:
        weights = safetensors.torch.load_file(folder / WEIGHTS)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS}: not a readable safetensors file ({error})") from error
    network = transformers_model(algorithm)
    weights = weights if network is None else network.from_folder(weights)
    check_state(weights, algorithm.state_dict(), str(folder / WEIGHTS))
    algorithm.load_state_dict(weights)
    generation = _read_json(folder / GENERATION).get("flm") if (folder / GENERATION).is_file() else None
    if generation is None:
        generation = generation_defaults(own["config"])
    if not isinstance(generation, dict) or not isinstance(generation.get("options"), dict) or "steps" not in generation:
        raise ValueError(f"{folder / GENERATION}: key 'flm' must hold steps and options")
    tokenizer = own["tokenizer"] | {"json": (folder / TOKENIZER).read_text(encoding="utf-8")}
    return algorithm.eval(), Exported(folder, own["config"], tokenizer, generation, own["step"])


def generation_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """`steps` and sampler `options` to generate with, from the `sampling` node of a recorded config.

    steps is the largest number it lists.
    """
    recorded = config.get("sampling") or {}
    steps = recorded.get("steps") or _DEFAULT_STEPS
    options = {key: value for key, value in recorded.items() if key not in CANVAS_KEYS and value is not None}
    return {"steps": max(steps) if isinstance(steps, list | tuple) else steps, "options": options}


def shareable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe in a recorded config, without what belongs to the machine: absolute paths are cut to their last part."""
    return _cut({key: value for key, value in config.items() if key not in _OF_THE_RUN})


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cut(item) for item in value]
    absolute = isinstance(value, str) and (value.startswith(("/", "~")) or value[1:3] in (":\\", ":/"))
    return value.replace("\\", "/").rstrip("/").rpartition("/")[2] if absolute else value


def networks_of(algorithm: Algorithm) -> dict[str, dict[str, Any]]:
    """Every network the modeling file knows, by its name in the weights."""
    found: dict[str, dict[str, Any]] = {}
    for name, module in algorithm.named_modules():
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        if type(module) is CausalTransformer and type(module.body) is DiT:
            found[name] = {"kind": "CausalTransformer", "arguments": _arguments(module.body)}
        elif type(module) is DiT:
            found[name] = {"kind": "DiT", "arguments": _arguments(module)}
    return found


def _arguments(network: DiT) -> dict[str, Any]:
    """Of the modeling file's DiT, read off the network itself: defaults and what the algorithm chose included."""
    block, time = network.blocks[0], network.time_embedding
    first_layer = block.mlp[0]
    assert isinstance(first_layer, nn.Linear)
    return {
        "vocab_size": network.vocab_size,
        "hidden_size": network.hidden_size,
        "num_blocks": len(network.blocks),
        "num_heads": network.hidden_size // network.head_dim,
        "mlp_ratio": first_layer.out_features // network.hidden_size,
        "output_softcap": network.output_softcap,
        "attention_softcap": block.attention_softcap,
        "cond_dim": None if time is None else time.mlp[-1].out_features,
        "frequencies": None if time is None else time.frequencies,
        "time_scale": None if time is None else time.scale,
        "two_times": network.second_time_embedding is not None,
        "causal": network.causal,
        "grid": None if network.cells is None else list(network.cells.shape),
    }


def _tokenizer_config(tokenizer: Mapping[str, Any], length: int) -> dict[str, Any]:
    vocabulary = Tokenizer.from_dict(dict(tokenizer))
    spelling = {
        f"{name}_token": vocabulary.token(tokenizer[f"{name}_id"])
        for name in ("bos", "eos", "pad")
        if tokenizer[f"{name}_id"] is not None
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
        **spelling,
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    atomic.write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
