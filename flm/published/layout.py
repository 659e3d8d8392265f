"""The layout in which FLM (arXiv 2602.16813), MDLM (arXiv 2406.07524) and Duo (arXiv 2506.10892) publish Lightning checkpoints.

All three train one diffusion transformer under the name `backbone`:

    vocab_embed.embedding, sigma_map.mlp.{0,2}, blocks.N.*, output_layer.*     always
    sigma_map_prime.mlp.{0,2}                                                  flow maps
    learnable_loss_weighting.{s_embed.mlp.{0,2}, mlp.{0,2}}                    where the loss was weighted by a learned w(tau)
    rotary_emb.inv_freq                                                        a buffer; half the width of a head

and keep the average of the weights beside it as a list without names, in the order of the state dict.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flm.algos.losses import LossWeight
from flm.checkpoints.files import check_state
from flm.checkpoints.restricted import Inert
from flm.models.dit import DiT

_BUFFER = "backbone.rotary_emb.inv_freq"
_MAX_BLOCKS = 1000
# the beginning of a name here, and of the same name there; others are equal
_NAMES = {
    "backbone.input_table": "backbone.vocab_embed.embedding",
    "backbone.time_embedding.": "backbone.sigma_map.",
    "backbone.second_time_embedding.": "backbone.sigma_map_prime.",
    "loss_weight.": "backbone.learnable_loss_weighting.",
}


@dataclass(frozen=True)
class Layout:
    """What a published file says of its model. Tensors lie on the CPU, named as in this project.

    Attributes:
        weights: as trained: `backbone.*`, and `loss_weight.*` where that was learned.
        averages: of the same names, by decay as the file writes it, in its order; empty if there are none.
        average_updates: optimiser steps in them.
        model: arguments of `DiT` that the shapes tell.
        vocab_size: V, rows of the input table.
        two_times: whether it is a flow map.
        step: optimiser steps.
        algorithm, parameterization, time_condition, length: as the file's own config names them; None where it does not.
        lightning: version of Lightning that wrote it; None where it does not say.
        several_averages: whether it has the place for several, as code of early 2026 alone wrote.
    """

    weights: dict[str, Tensor]
    averages: dict[str, dict[str, Tensor]]
    average_updates: int
    model: dict[str, Any]
    vocab_size: int
    two_times: bool
    step: int
    algorithm: str | None
    parameterization: str | None
    time_condition: str | None
    length: int | None
    lightning: str | None
    several_averages: bool


def is_published(content: Any) -> bool:
    """Whether a loaded file is laid out so."""
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    return isinstance(state, Mapping) and any(
        isinstance(key, str) and _plain_name(key) == "backbone.vocab_embed.embedding" for key in state
    )


def layout_of(content: Mapping[str, Any], name: str) -> Layout:
    """The model in a file called `name` for which `is_published` holds.

    Raises:
        ValueError: weights are missing, unexpected or of another shape than the others imply, or the average is not of them.
    """
    state, parameters = _parameters(content["state_dict"], name)
    parameterization = _text(config_value(content, "algo.parameterization")) or _text(config_value(content, "parameterization"))
    table = state["backbone.vocab_embed.embedding"]
    if table.ndim != 2 or min(table.shape) < 1:
        raise ValueError(f"{name}: backbone.vocab_embed.embedding has shape {tuple(table.shape)}, not (V, D)")
    vocab_size, width = table.shape
    two_times = any(key.startswith("backbone.sigma_map_prime.") for key in parameters)
    blocks = len({key.split(".")[2] for key in parameters if key.startswith("backbone.blocks.")})
    if blocks > _MAX_BLOCKS:
        raise ValueError(f"{name}: weights of {blocks} blocks, more than any such model has")
    model = {
        "hidden_size": width,
        "num_blocks": blocks,
        "num_heads": _heads(state, width, content, name),
        "cond_dim": _rows(state, "backbone.sigma_map.mlp.2.bias", name),
        "mlp_ratio": _rows(state, "backbone.blocks.0.mlp.0.bias", name) // width,
    }
    with torch.device("meta"):  # shapes only: nothing is allocated before they are known to fit
        network = DiT(vocab_size, 1, **model, two_times=two_times)
        expected = {f"backbone.{key}": tensor for key, tensor in network.state_dict().items()}
        if any(key.startswith("backbone.learnable_loss_weighting.") for key in parameters):
            expected |= {f"loss_weight.{key}": tensor for key, tensor in LossWeight().state_dict().items()}
    theirs = {key: _published_name(key) for key in expected}
    check_state({key: state[key] for key in parameters}, {theirs[key]: tensor for key, tensor in expected.items()}, name)
    averages, updates = _averages(content, {key: state[key] for key in parameters}, name)
    return Layout(
        weights={key: state[theirs[key]] for key in expected},
        averages={decay: {key: average[theirs[key]] for key in expected} for decay, average in averages.items()},
        average_updates=updates,
        model=model,
        vocab_size=vocab_size,
        two_times=two_times,
        step=_whole(content.get("global_step")) or 0,
        algorithm=_text(config_value(content, "algo.name")),
        parameterization=parameterization,
        time_condition=_text(config_value(content, "algo.time_condition")),
        length=_whole(config_value(content, "model.length")),
        lightning=_text(content.get("pytorch-lightning_version")),
        several_averages=content.get("ema_list") is not None,
    )


def config_value(content: Mapping[str, Any], path: str) -> Any:
    """A scalar of the config the file was trained with, by its dotted path; None where it holds no such plain value.

    The config is an object of OmegaConf, of which the reader keeps the attributes alone: `_content` of a node with
    children, `_val` of a leaf. A value that refers to another ("${...}") is not followed.
    """
    node: Any = content.get("hyper_parameters")
    for part in ("config", *path.split(".")):
        if isinstance(node, Inert):
            node = node.state.get("_content") if isinstance(node.state, dict) else None
        node = node.get(part) if isinstance(node, Mapping) else None
    if isinstance(node, Inert):
        node = node.state.get("_val") if isinstance(node.state, dict) else None
    if isinstance(node, str) and "${" in node:
        return None
    return node if isinstance(node, (str, int, float)) else None


def _parameters(state: Mapping[Any, Any], name: str) -> tuple[dict[str, Tensor], list[str]]:
    """Weights by name, without a teacher's and without the marks of torch.compile; and which are parameters, in order."""
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{name}: state_dict entry {str(key)[:80]!r} is not a tensor")
        if key.startswith("teacher"):
            continue
        plain = _plain_name(key)
        if plain in found:
            raise ValueError(f"{name}: state_dict holds {plain} twice, compiled and not")
        found[plain] = tensor
    return found, [key for key in found if key != _BUFFER]


def _averages(content: Mapping[str, Any], parameters: dict[str, Tensor], name: str) -> tuple[dict[str, dict[str, Tensor]], int]:
    """Averages with the names given back by position, and the updates in the first."""
    several, single = content.get("ema_list"), content.get("ema")
    if several is not None:
        if not isinstance(several, Mapping) or not several:
            raise ValueError(f"{name}: ema_list is not a dict of averages")
        kept = {str(decay): average for decay, average in several.items()}
    else:
        kept = {} if single is None else {"ema": single}
    found: dict[str, dict[str, Tensor]] = {}
    updates = 0
    for index, (decay, average) in enumerate(kept.items()):
        label = decay if decay == "ema" else f"ema_list {decay}"
        tensors = average.get("shadow_params") if isinstance(average, Mapping) else None
        if not isinstance(tensors, (list, tuple)):
            raise ValueError(f"{name}: {label} holds no list shadow_params")
        if len(tensors) != len(parameters):
            raise ValueError(
                f"{name}: {label} holds {len(tensors)} tensors for {len(parameters)} parameters: they cannot be matched"
            )
        wrong = [
            f"tensor {i} does not have the shape {tuple(parameter.shape)} of {key}"
            for i, ((key, parameter), tensor) in enumerate(zip(parameters.items(), tensors, strict=True))
            if not isinstance(tensor, Tensor) or tensor.shape != parameter.shape
        ]
        if wrong:
            more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            raise ValueError(f"{name}: {label}: {'; '.join(wrong[:4])}{more}")
        found[decay] = dict(zip(parameters, tensors, strict=True))
        if index == 0:
            updates = _whole(average.get("num_updates")) or 0
    return found, updates


def _heads(state: Mapping[str, Tensor], width: int, content: Mapping[str, Any], name: str) -> int:
    frequencies = state.get(_BUFFER)
    if frequencies is None:
        heads = _whole(config_value(content, "model.n_heads"))
        if not heads:
            raise ValueError(f"{name}: neither {_BUFFER} nor a config tells the number of heads")
        return heads
    half = frequencies.numel()
    if frequencies.ndim != 1 or not half or width % (2 * half):
        raise ValueError(f"{name}: {_BUFFER} has shape {tuple(frequencies.shape)}: no heads for a width of {width}")
    expected = 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    if not torch.allclose(frequencies.double(), expected, rtol=1e-2, atol=0):  # 1e-2: bf16
        raise ValueError(f"{name}: {_BUFFER} are not the rotary frequencies 10000^(-2j/Dh) this model uses")
    return width // (2 * half)


def _rows(state: Mapping[str, Tensor], key: str, name: str) -> int:
    if key not in state or state[key].ndim != 1 or not len(state[key]):
        raise ValueError(f"{name}: the weights do not fit the model: {key} missing or not a vector")
    return len(state[key])


def _plain_name(key: str) -> str:
    return key.replace("._orig_mod.", ".")


def _published_name(ours: str) -> str:
    for here, there in _NAMES.items():
        if ours.startswith(here):
            return there + ours.removeprefix(here)
    return ours


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None
