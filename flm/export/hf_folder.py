"""Writes a model as a Hugging Face folder: weights as safetensors, all else as JSON, so that nothing is executed on loading.

The folder holds a checkpoint without its training state. `config.json` describes the networks inside the weights, so that the
modeling file beside it opens them without this package.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from flm import atomic
from flm.algos.algorithm import Algorithm
from flm.checkpoints.description import package_version
from flm.checkpoints.folder import (
    CONFIG,
    DIGESTED,
    FORMAT_VERSION,
    GENERATION,
    READ,
    SHA256,
    TOKENIZER,
    WEIGHTS,
    shareable,
    transformers_model,
)
from flm.checkpoints.model_file import ModelSource, sha256_of
from flm.data.tokenizers import Tokenizer
from flm.models.causal import CausalTransformer
from flm.models.dit import DiT

CARD, TOKENIZER_CONFIG = "README.md", "tokenizer_config.json"
MODELING, GENERATING = "modeling_flm.py", "generation_flm.py"


def write_folder(folder: Path, algorithm: Algorithm, source: ModelSource, card: str) -> list[str]:
    """Writes a model, and returns the names of the files. config.json comes last, so an incomplete folder is no model.

    If the algorithm has a `transformers_model`, weights and config have the names of that network's own code, which is then
    copied into the folder in place of the general modeling file.

    Args:
        algorithm: has the weights to write.
        source: the model's description.
        card: content of README.md.
    """
    assert source.tokenizer is not None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    own = transformers_model(algorithm)
    state = algorithm.state_dict() if own is None else own.to_folder(algorithm.state_dict())
    # clones, since safetensors refuses tensors that share storage, as tied weights do
    weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    with atomic.draft(folder / WEIGHTS) as partial:
        try:
            safetensors.torch.save_file(weights, partial, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))  # the library has no errno attribute
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(partial)) from error
    tokenizer = shareable({key: value for key, value in source.tokenizer.items() if key != "json"})
    atomic.write_text(folder / TOKENIZER, source.tokenizer["json"])
    shutil.copymode(folder / TOKENIZER, folder / WEIGHTS)  # safetensors makes files that only their owner may read
    atomic.write_json(folder / TOKENIZER_CONFIG, _tokenizer_config(source.tokenizer, algorithm.length))
    special = {f"{name}_token_id": tokenizer[f"{name}_id"] for name in ("bos", "eos", "pad")}
    generation = source.generation
    # written in full, so that pipelines do not use their own defaults
    usual = {"do_sample": True, "temperature": generation["options"].get("temperature", 1.0), "max_length": algorithm.length}
    atomic.write_json(folder / GENERATION, special | (usual if own is None else {}) | {"flm": generation})
    code = [Path(__file__).parent / name for name in (MODELING, GENERATING)] if own is None else own.code
    for file_of_code in code:
        atomic.write_text(folder / file_of_code.name, file_of_code.read_text(encoding="utf-8"))
    atomic.write_text(folder / CARD, card)
    networks = networks_of(algorithm)
    opens = {
        "architectures": ["FlowLanguageModel"],
        "auto_map": {
            "AutoConfig": f"{MODELING.removesuffix('.py')}.FlowLanguageModelConfig",
            "AutoModel": f"{MODELING.removesuffix('.py')}.FlowLanguageModel",
            "AutoModelForCausalLM": f"{MODELING.removesuffix('.py')}.FlowLanguageModel",
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
        "tables": {
            name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
            for name, tensor in weights.items()
            if not name.startswith(tuple(f"{network}." for network in networks))
        },
        **({} if own is None else own.config(algorithm, generation["steps"])),
        "flm": {
            "format_version": FORMAT_VERSION,
            "vocab_size": algorithm.vocab_size,
            "package_version": package_version(),
            "step": source.step,
            "weights": source.weights,
            "checkpoint_sha256": source.sha256,
            SHA256: {name: sha256_of(folder / name) for name in DIGESTED},
            "tokenizer": tokenizer,
            "config": shareable(source.config if own is None else own.recipe(source.config)),
        },
    }
    atomic.write_json(folder / CONFIG, config)
    return [*READ, TOKENIZER_CONFIG, CARD, *(path.name for path in code)]


def networks_of(algorithm: Algorithm) -> dict[str, dict[str, Any]]:
    """The networks that the modeling file can build, by their names in the weights."""
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
    """Arguments of the modeling file's DiT, read off the network, and so complete with defaults and the algorithm's choices."""
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
        "time_insertion": network.time_insertion,
        "two_times": network.second_time_embedding is not None,
        "causal": network.causal,
        "grid": None if network.cells is None else list(network.cells.shape),
        "neighbours": 0 if network.neighbours is None else network.neighbours.reach,
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
        **({} if vocabulary.chat_template is None else {"chat_template": vocabulary.chat_template}),
    }
