"""Low-rank adapters on a Qwen3 (LoRA, arXiv 2106.09685), made by peft: few parameters are trained beside frozen weights.

W x becomes W x + (alpha / rank) B A x with A (rank, in) and B (out, rank). B is 0 at first, so training starts at the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flm.ranges import BelowOne, Count, Positive, Text

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BASE, DOWN, UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


@dataclass(frozen=True)
class LoRA:
    """Options of the adapters.

    Args:
        rank: of the adapters.
        alpha: B A is scaled by alpha / rank.
        dropout: on the input of an adapter.
        layers: names of the linear layers that get adapters.
    """

    rank: Count = 16
    alpha: Positive = 32.0
    dropout: BelowOne = 0.0
    layers: Sequence[Text] = LAYERS

    def put_into(self, network: nn.Module) -> None:
        """Adds the adapters, and freezes all parameters but these and those that Qwen3 lacks ("time_").

        Raises:
            ValueError: peft is not installed, or there is no layer of these names.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ValueError("model.lora needs peft: pip install peft") from error
        linear = {name.rpartition(".")[2] for name, module in network.named_modules() if isinstance(module, nn.Linear)}
        missing = [name for name in self.layers if name not in linear]
        if missing:
            raise ValueError(f"model.lora.layers: no layer is called {missing[0]}; there are {', '.join(sorted(linear))}")
        options: dict[str, Any] = {"r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout}
        inject_adapter_in_model(LoraConfig(target_modules=list(self.layers), **options), network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_("lora_" in name or "time_" in name)

    def merged(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights W + (alpha / rank) B A, by their names without adapters."""
        found = {}
        for name, tensor in state.items():
            if name.endswith((DOWN, UP)):
                continue
            layer, base, rest = name.partition(BASE)
            if base and rest == "weight":
                change = state[layer + UP].double() @ state[layer + DOWN].double()
                tensor = (tensor.double() + self.alpha / self.rank * change).to(tensor.dtype)
            found[f"{layer}.{rest}" if base else name] = tensor
        return found
