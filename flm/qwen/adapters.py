"""Folders that hold adapters without their base model. peft opens them too, and `flm.load` merges them into the base.

adapter_model.safetensors  A and B of each layer, and the parameters that Qwen3 lacks ("time_"), by peft's names
adapter_config.json        for peft: path of the base (base_model_name_or_path), rank, alpha, layers
flm_adapter.json           config of the training, with the algorithm, and the SHA-256 of the base's weights
tokenizer.json             as in an exported folder
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

import flm
from flm import atomic
from flm.algos.algorithm import Algorithm
from flm.checkpoints.build import build_algorithm
from flm.checkpoints.description import Description
from flm.checkpoints.files import check_state
from flm.checkpoints.folder import TOKENIZER, json_object, shareable
from flm.checkpoints.model_file import ModelFile
from flm.checkpoints.room import Room
from flm.data.tokenizers import Tokenizer
from flm.device import device_named
from flm.handed_in import VOCABULARY_BYTES, read_text
from flm.language_model import LanguageModel
from flm.qwen.backbone import QwenBackbone
from flm.qwen.lora import BASE, LoRA
from flm.qwen.transformers_model import transformers_model
from flm.schema import made
from flm.text_commands import Arguments

WEIGHTS, PEFT, OWN = "adapter_model.safetensors", "adapter_config.json", "flm_adapter.json"
_OUTER, _NAME = "base_model.model.", ".default"  # peft adds these before and into names
_TYPES = {"config": dict, "tokenizer": dict, "vocab_size": int, "length": int, "step": int, "base_sha256": str}


def save_adapter(lm: LanguageModel, folder: str | Path, base: str | Path | None = None) -> list[str]:
    """Writes the adapters of a model with `model.lora`, and returns the names of the files.

    Args:
        base: folder of the frozen weights; None: model.pretrained_path of the training.

    Raises:
        ValueError: the model has no adapters or was made in Python, or there is no folder of the base.
    """
    found, source = transformers_model(lm.algorithm), lm.source
    lora = None if found is None else found.backbone.lora
    if found is None or lora is None:
        raise ValueError("the model has no adapters of its own (model.lora): mode=export writes it whole")
    if source is None or source.tokenizer is None:
        raise ValueError("the model was made in Python: nothing says how it was trained; train it with flm, or load one")
    base = source.config["model"].get("pretrained_path") if base is None else base
    if base is None or not Path(base).is_dir():
        raise ValueError(f"the base of the adapters is not at {base}: name the folder of the model that training began with")
    folder, state = Path(folder), {name: tensor.cpu() for name, tensor in found.backbone.network.state_dict().items()}
    small = [name for name in sorted(state) if ".lora_" in name or "time_" in name]
    about = {
        "config": shareable(source.config) | {"weights": source.weights},
        "tokenizer": shareable({key: value for key, value in source.tokenizer.items() if key != "json"}),
        "vocab_size": lm.algorithm.vocab_size,
        "length": lm.algorithm.length,
        "step": source.step,
        "base_sha256": _digest(found.backbone),
    }
    peft = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(Path(base).resolve()),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.layers),
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    weights = {_OUTER + name.replace(_NAME, ""): state[name].contiguous() for name in small}
    with atomic.draft(folder / WEIGHTS) as partial:
        partial.write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))
    atomic.write_text(folder / TOKENIZER, source.tokenizer["json"])
    atomic.write_json(folder / PEFT, peft)
    atomic.write_json(folder / OWN, about)
    return [WEIGHTS, TOKENIZER, PEFT, OWN]


def load_adapter(
    folder: str | Path,
    base: str | Path | None = None,
    merged: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> LanguageModel:
    """The base with a folder's adapters.

    Args:
        base: folder of the frozen weights; None: as in adapter_config.json.
        merged: put W + alpha / rank B A in place of W, which needs no peft; else keep the adapters beside W.
        device, dtype: as of `flm.load`.

    Raises:
        ValueError: the folder is damaged; its base is not there, or has other weights than those it was trained beside.
    """
    folder = Path(folder)
    description, algorithm = _built(folder, base, merged)
    source = ModelFile(folder, description, {}).source(folder.resolve().name, str(description.config.get("weights")))
    tokenizer = Tokenizer.from_dict(description.tokenizer or {})
    return LanguageModel(algorithm.to(device_named(device)), tokenizer, source).to(dtype=dtype)


class AdapterFolder:
    """Reads adapter folders as a kind of model file, merged."""

    @staticmethod
    def matches(path: Path) -> bool:
        return (path / OWN).is_file()

    @staticmethod
    def read(path: str | Path) -> tuple[Description, dict[str, Tensor]]:
        description, algorithm = _built(Path(path), None, True)
        return description, algorithm.state_dict()


def adapter(arguments: Sequence[str]) -> int:
    """write the LoRA adapters of a checkpoint as a small folder of their own

    Whatever takes a model takes the folder, merged into its base; peft opens it too.
    """
    parser = Arguments(prog="flm adapter", description=adapter.__doc__)
    parser.add_argument("model", help="a run folder or checkpoint trained with model.lora")
    parser.add_argument("folder", type=Path, help="to write")
    parser.add_argument("--base", help="folder of the weights that stay; default: the model.pretrained_path of training")
    parser.add_argument("--last-weights", action="store_true", help="not the averaged weights")
    given = parser.parse_args(arguments)
    files = save_adapter(flm.load(given.model, "cpu", False if given.last_weights else None), given.folder, given.base)
    size = sum((given.folder / name).stat().st_size for name in files)
    print(f"{given.folder}: {size / 1e6:,.1f} MB; in Python: flm.load({str(given.folder)!r})", flush=True)
    return 0


def _built(folder: Path, base: str | Path | None, merged: bool) -> tuple[Description, Algorithm]:
    """The description and the model; arguments and errors as of `load_adapter`."""
    about, peft = json_object(folder / OWN), json_object(folder / PEFT)
    damaged = [key for key, kind in _TYPES.items() if not isinstance(about.get(key), kind)]
    model = {} if damaged else about["config"].get("model")
    if damaged or not (isinstance(model, dict) and isinstance(model.get("lora"), dict)):
        raise ValueError(f"{folder / OWN}: damaged: {', '.join(damaged) or 'config.model.lora'} missing or of another type")
    config, lora = about["config"], made(LoRA, model["lora"], f"{folder / OWN}: config.model.lora")
    try:
        small = safetensors.torch.load_file(folder / WEIGHTS)
        text = read_text(folder / TOKENIZER, VOCABULARY_BYTES)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{folder}: not a whole adapter: {error}") from error
    small = {_own_name(name): tensor for name, tensor in small.items()}
    if merged:
        config = {**config, "model": {key: value for key, value in model.items() if key != "lora"}}
    place = peft.get("base_model_name_or_path") if base is None else base
    extra = {"pretrained": str(place)}
    algorithm = build_algorithm(config, about["vocab_size"], room=_room(folder, place), model_extra=extra)
    found = transformers_model(algorithm)
    if found is None:
        raise ValueError(f"{folder / OWN}: damaged: it describes no Qwen3")
    if _digest(found.backbone) != about["base_sha256"]:
        raise ValueError(f"{folder}: {place} is not its base: the adapters were trained beside other weights")
    network = found.backbone.network
    state = network.state_dict()
    if merged:
        adapted = {name.partition(".lora_")[0] for name in small if ".lora_" in name}
        beside = {f"{layer}{BASE}weight": state[f"{layer}.weight"] for layer in adapted if f"{layer}.weight" in state}
        small = lora.merged({**beside, **small})
    wanted = {name: state[name] for name in small if name in state}
    if not merged:
        wanted |= {name: tensor for name, tensor in state.items() if ".lora_" in name}
    check_state(small, wanted, str(folder / WEIGHTS))
    network.load_state_dict(small, strict=False)
    tokenizer = about["tokenizer"] | {"json": text}
    return Description(config, tokenizer, about["vocab_size"], about["length"], about["step"]), algorithm.eval()


def _own_name(name: str) -> str:
    """The network's name of a tensor in peft's file."""
    name = name.removeprefix(_OUTER)
    head, dot, last = name.rpartition(".")
    return f"{head}{_NAME}{dot}{last}" if ".lora_" in name else name


def _room(folder: Path, place: Any) -> Room:
    """Room for the tensors in the safetensors files of the base, by their headers."""
    files = sorted(Path(place).glob("*.safetensors")) if isinstance(place, str | Path) else []
    if not files:
        raise ValueError(
            f"{folder}: no weights of the base at {place}: write its folder as base_model_name_or_path into {folder / PEFT}"
        )
    try:
        tensors = sum(len(safetensors.safe_open(file, framework="pt").keys()) for file in files)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{place}: not readable safetensors files ({error})") from error
    return Room(tensors, sum(file.stat().st_size for file in files) // 2)  # elements, of at least two bytes each


def _digest(backbone: QwenBackbone) -> str:
    """SHA-256 of the frozen weights and their names. The mask's row is left out: it is a mean, whose last bit may differ
    between machines."""
    found, mask, tied = hashlib.sha256(), backbone.mask_id, backbone.network.all_tied_weights_keys
    state = {name.replace(BASE, "."): tensor for name, tensor in backbone.network.state_dict().items() if name not in tied}
    for name in sorted(state):
        if ".lora_" not in name and "time_" not in name:
            values = state[name].detach().cpu().float()
            if name == "model.embed_tokens.weight" and mask is not None:
                values = torch.cat((values[:mask], values[mask + 1 :]))
            found.update(name.encode())
            found.update(values.contiguous().numpy().data)
    return found.hexdigest()
