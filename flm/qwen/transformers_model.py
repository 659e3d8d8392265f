"""Models whose network transformers can open: config, weights and code of the exported folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from flm.algos.algorithm import Algorithm
from flm.qwen import backbone as qwen
from flm.qwen.backbone import QwenBackbone, scheduler_fields

CONFIGURATION, MODELING = "configuration_flow_qwen3.py", "modeling_flow_qwen3.py"
CODE = (CONFIGURATION, MODELING)
_OF_THIS_MACHINE = ("_name_or_path", "dtype")


@dataclass(frozen=True)
class TransformersModel:
    """The network of an algorithm that has no other parameters.

    Attributes:
        prefix: of the names of the network's weights in the algorithm's state.
        backbone: the module around the network.
    """

    prefix: str
    backbone: QwenBackbone

    @property
    def code(self) -> list[Path]:
        """The files that transformers runs to open the network."""
        return [Path(qwen.__file__).parent / name for name in CODE]

    def config(self, algorithm: Algorithm, steps: int) -> dict[str, Any]:
        """The content of transformers' config.json; `steps` is the default number of sampling steps."""
        config = self.backbone.network.config
        plain = {key: value for key, value in config.to_diff_dict().items() if key not in _OF_THIS_MACHINE}
        return plain | {
            "architectures": [type(self.backbone.network).__name__],
            "auto_map": {
                "AutoConfig": f"{CONFIGURATION[:-3]}.{type(config).__name__}",
                "AutoModelForMaskedLM": f"{MODELING[:-3]}.{type(self.backbone.network).__name__}",
            },
            "num_sampling_steps": steps,
            **scheduler_fields(getattr(algorithm, "schedule", None)),
        }

    def usage(self, name: str) -> str:
        """The section of the model card on use in transformers."""
        return (
            f"The network alone, logits of every token from a corrupted sequence (see `{MODELING}`):\n\n"
            "    from transformers import AutoModelForMaskedLM\n"
            f'    model = AutoModelForMaskedLM.from_pretrained("{name}", trust_remote_code=True)'
        )

    def to_folder(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The algorithm's weights by transformers' names, with adapters merged, and tied weights once."""
        own = {name.removeprefix(self.prefix): tensor for name, tensor in state.items()}
        lora = self.backbone.lora
        return {name: tensor for name, tensor in (lora.merged(own) if lora else own).items() if name not in self._tied}

    def recipe(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config for building the folder's model: without adapters, since they are merged."""
        return {**config, "model": {key: value for key, value in config["model"].items() if key != "lora"}}

    def from_folder(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The algorithm's weights of a folder's: the reverse of `to_folder`, except for adapters."""
        tied = {copy: weights[name] for copy, name in self._tied.items() if name in weights}
        return {self.prefix + name: tensor for name, tensor in {**weights, **tied}.items()}

    @property
    def _tied(self) -> dict[str, str]:
        return self.backbone.network.all_tied_weights_keys


def transformers_model(algorithm: Algorithm) -> TransformersModel | None:
    """The algorithm's network for transformers; None: it has none, or has other weights too."""
    found = [(name, module) for name, module in algorithm.named_modules() if isinstance(module, QwenBackbone)]
    if len(found) != 1:
        return None
    prefix = f"{found[0][0]}.network."
    return TransformersModel(prefix, found[0][1]) if all(name.startswith(prefix) for name in algorithm.state_dict()) else None
