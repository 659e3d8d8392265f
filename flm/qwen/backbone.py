"""Qwen3 as a `TokenBackbone`, so that discrete flow matching starts from a pretrained language model.

The network itself is in flm/qwen/modeling_flow_qwen3.py. transformers is imported only when needed. B batch, L positions.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from flm.handed_in import read_json
from flm.models.attention import FLEX_ON
from flm.models.token_backbone import among_real
from flm.paths.mixture import Cosine, Polynomial, Schedule
from flm.posterior import TokenPosterior
from flm.qwen.lora import LoRA
from flm.ranges import Count, Index
from flm.schema import made

if TYPE_CHECKING:
    from flm.qwen.configuration_flow_qwen3 import FlowMatchingConfig
    from flm.qwen.modeling_flow_qwen3 import FlowMatchingLanguageModel

KEY = "model.pretrained_path"
# keys of a config.json about files and versions, not about the network
_NOT_SHAPE = ("architectures", "auto_map", "dtype", "torch_dtype", "flm", "networks", "length", "transformers_version")


def architecture_of(folder: str | Path | None) -> dict[str, Any] | None:
    """The network's config in a folder's config.json, which is of a Qwen3 or of a model exported here; of None, None.

    Raises:
        ValueError: there is no readable config.json, or it is of another network.
    """
    if folder is None:
        return None
    path = Path(folder) / "config.json"
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{KEY}={folder}: no model folder, its config.json cannot be read ({error})") from error
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind not in ("qwen3", "flow_qwen3"):
        raise ValueError(f"{KEY}={folder}: a model of type {kind!r}; qwen3, or one exported here, is needed")
    return {key: value for key, value in content.items() if key not in _NOT_SHAPE}


def schedule_of(scheduler_type: str, scheduler_n: float = 1.0) -> Schedule:
    """kappa(t) by its name in a `FlowMatchingConfig`.

    Raises:
        ValueError: there is no schedule of this name.
    """
    if scheduler_type == "polynomial_convex":
        return Polynomial(scheduler_n)
    known: dict[str, Callable[[], Schedule]] = {"linear": Polynomial, "cosine": Cosine}
    if scheduler_type not in known:
        raise ValueError(f"scheduler_type must be polynomial_convex, linear or cosine, not {scheduler_type!r}")
    return known[scheduler_type]()


def scheduler_fields(schedule: Schedule | None) -> dict[str, Any]:
    """The fields of a `FlowMatchingConfig` for a schedule; empty if it has no name there."""
    if isinstance(schedule, Polynomial):
        return {"scheduler_type": "polynomial_convex", "scheduler_n": schedule.exponent}
    return {"scheduler_type": "cosine"} if isinstance(schedule, Cosine) else {}


class QwenBackbone(nn.Module):
    """Qwen3 with bidirectional attention, as the `TokenBackbone` of discrete flow matching.

    With `pretrained` it starts from the weights of a folder, else from random weights, which a checkpoint then replaces.
    Parameters that Qwen3 lacks have "time_" in their names.

    Args:
        vocab_size: number of ids that it must read: V of the data, plus one for a mask that the tokenizer lacks.
        length: L; with a shift, one more position is read.
        architecture: from a config.json, see `architecture_of`. If it is of a model exported here, arguments below that are
            None are taken from it.
        pretrained: folder with the initial weights (safetensors).
        mask_id: row of the token table for the mask; None: the first that the tokenizer leaves free.
        source: noise that the model is trained on, "mask" or "uniform"; None: mask.
        shift: whether token i is predicted at the position before it, as in Qwen3's training; None: true.
        anchor_id: with a shift, the id before the first token; None: the begin, else the end token.
        time_mode: how t enters, "none", "add" or "adaln"; None: none, which is enough for masks, since their number tells t.
        time_embedding_dim, time_embedding_type: as in `FlowMatchingConfig`.
        causal: keep Qwen3's causal attention, for comparison.
        attention: "sdpa", "eager" or "flex_attention"; "flash_attention_2" for rows without documents or padding. None:
            flex_attention on CUDA if a mask is needed, since it skips blocks that are masked throughout; else sdpa.
        activation_checkpointing: recompute each layer's activations in the backward pass, which saves memory.
        lora: fields of `LoRA`, whose adapters are trained beside frozen weights; None: all weights are trained.

    Attributes:
        network: the `FlowMatchingLanguageModel`.
        mask_id, real_vocab_size: as in `TokenBackbone`.
        lora: the adapters; None: there are none.
        chooses_attention: whether each call chooses the kind of attention, by the device and the need of a mask.

    Raises:
        ValueError: there is no architecture, no free row for a mask, too few rows or positions, or the folder's weights are
            not those of the architecture.
    """

    def __init__(
        self,
        vocab_size: Count,
        length: Count,
        architecture: Mapping[str, Any] | None,
        pretrained: str | Path | None = None,
        mask_id: Index | None = None,
        source: Literal["mask", "uniform"] | None = None,
        shift: bool | None = None,
        anchor_id: Index | None = None,
        time_mode: Literal["none", "add", "adaln"] | None = None,
        time_embedding_dim: Count | None = None,
        time_embedding_type: str | None = None,
        causal: bool = False,
        attention: Literal["sdpa", "eager", "flex_attention", "flash_attention_2"] | None = None,
        activation_checkpointing: bool = False,
        lora: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if architecture is None:
            raise ValueError(f"{KEY} is not set: name a Qwen3 folder, or a model exported here")
        given = {
            "mask_token_id": mask_id,
            "source": source,
            "shift": shift,
            "anchor_token_id": anchor_id,
            "time_mode": time_mode,
            "time_embedding_dim": time_embedding_dim,
            "time_embedding_type": time_embedding_type,
        }
        given = {key: value for key, value in given.items() if value is not None}
        config = _config(dict(architecture), given | {"is_causal": causal}, vocab_size, length)
        config._attn_implementation = attention or "sdpa"
        self._hold(_new(config) if pretrained is None else _pretrained(pretrained, config))
        self.chooses_attention = attention is None
        self.network.train()  # transformers loads for evaluation, where no activation is checkpointed
        if activation_checkpointing:
            self.network.activation_checkpointing_enable({"use_reentrant": False})
        if lora is not None:
            self.lora = made(LoRA, lora, "model.lora")
            self.lora.put_into(self.network)

    @classmethod
    def around(cls, network: "FlowMatchingLanguageModel") -> "QwenBackbone":
        """The backbone of an existing network."""
        backbone = cls.__new__(cls)
        nn.Module.__init__(backbone)
        backbone._hold(network)
        backbone.chooses_attention = False
        return backbone

    lora: LoRA | None = None

    def _hold(self, network: "FlowMatchingLanguageModel") -> None:
        self.network = network
        self.mask_id: int | None = network.config.mask_token_id if network.config.source == "mask" else None
        self.real_vocab_size: int = network.config.real_vocab_size

    def forward(
        self,
        tokens: Tensor,
        t: Tensor | None = None,
        documents: Tensor | None = None,
        states: Callable[[], Tensor] | None = None,
    ) -> TokenPosterior:
        """The posterior (B, L) of every token, of ids below `real_vocab_size` other than the mask's.

        Args:
            states: gives the final hidden states (B, L, D) where not all of them are computed again; who counts calls of
                networks counts these too.
        """
        if states is not None:
            return self._posterior(states())
        if self.chooses_attention:
            needs_mask = documents is not None or self.network.is_annealed
            flexes = needs_mask and tokens.device.type in FLEX_ON
            self.network.config._attn_implementation = "flex_attention" if flexes else "sdpa"
        return self._posterior(self.network.encode(tokens, t, documents))

    def block_reader(
        self, blocks: Tensor, documents: Tensor | None, earlier: bool, keep: bool
    ) -> Callable[..., TokenPosterior]:
        """As `flm.samplers.masked.DiscreteDenoiser.block_reader`."""
        from flm.qwen.block_cache import BlockReader

        if self.chooses_attention:
            self.network.config._attn_implementation = "sdpa"
        reader = BlockReader(self.network, blocks, documents, earlier, keep)
        return lambda *state: self(state[0], states=partial(reader, *state))

    def _posterior(self, hidden: Tensor) -> TokenPosterior:
        return among_real(TokenPosterior(hidden, self.network.lm_head.weight), self.real_vocab_size, self.mask_id)

    @property
    def most_positions(self) -> int:
        """The most tokens of a text."""
        return self.network.config.max_position_embeddings - int(self.network.config.shift)

    def flops_per_token(self, length: int) -> int:
        """FLOPs per token of one forward pass: two for each weight of a matrix product, and the products of attention."""
        config = self.network.config
        weights = sum(p.numel() for p in self.network.model.layers.parameters() if p.ndim == 2)
        attention = 2 * length * config.num_attention_heads * config.head_dim * config.num_hidden_layers
        return 2 * (weights + self.real_vocab_size * config.hidden_size + attention)

    def compile_blocks(self, mode: str = "default") -> None:
        """Compiles the layers."""
        for layer in self.network.model.layers:
            layer.compile(mode=mode)

    def set_future_share(self, share: float | None) -> None:
        """As `FlowMatchingLanguageModel.future_share`."""
        self.network.future_share = share


def _config(architecture: dict[str, Any], given: dict[str, Any], vocab_size: int, length: int) -> "FlowMatchingConfig":
    from flm.qwen.configuration_flow_qwen3 import FlowMatchingConfig

    rows = architecture.get("vocab_size", 0)
    own = architecture.pop("model_type", None) == FlowMatchingConfig.model_type
    masked = given.get("source", architecture.get("source", "mask")) == "mask"
    real = vocab_size - 1 if masked else vocab_size  # `token_backbone` asks for one row more where there is a mask
    if "mask_token_id" not in given and not own:
        given["mask_token_id"] = real if masked else min(real, rows - 1)
    if vocab_size > rows and (real > rows or given.get("mask_token_id", architecture.get("mask_token_id")) == real):
        raise ValueError(
            f"{KEY}: the token table has {rows} rows, all taken by the {real} tokens of the tokenizer: no row is left for a "
            "mask; name a token that is in no text as model.mask_id"
            if real == rows
            else f"{KEY}: the token table has {rows} rows, the tokenizer {real} tokens: take the model's own tokenizer"
        )
    try:
        config = FlowMatchingConfig(**architecture | given | {"real_vocab_size": real})
    except (ValueError, TypeError) as error:  # strict dataclasses raise both
        raise ValueError(f"model: {_first_line(error)}") from error
    read = length + int(config.shift)
    if read > config.max_position_embeddings:
        raise ValueError(
            f"model.length={length}: the model reads at most {config.max_position_embeddings} positions, not {read}"
        )
    return config


def _new(config: "FlowMatchingConfig") -> "FlowMatchingLanguageModel":
    from flm.qwen.modeling_flow_qwen3 import FlowMatchingLanguageModel

    return FlowMatchingLanguageModel(config)


def _pretrained(folder: str | Path, config: "FlowMatchingConfig") -> "FlowMatchingLanguageModel":
    from transformers.utils import logging

    from flm.qwen.modeling_flow_qwen3 import FlowMatchingLanguageModel

    if not any(Path(folder).glob("*.safetensors")):
        raise ValueError(f"{KEY}={folder}: holds no safetensors weights; pickled ones can execute code and are not read")
    verbosity, shows_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # else it reports what is missing, which `from_pretrained` has checked
    logging.disable_progress_bar()
    try:
        with torch.device("cpu"):
            options = {"dtype": torch.float32, "attn_implementation": config._attn_implementation, "local_files_only": True}
            return FlowMatchingLanguageModel.from_pretrained(str(folder), config=config, **options)
    except Exception as error:  # transformers and safetensors each raise their own
        raise ValueError(f"{KEY}={folder}: {_first_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
        if shows_bar:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
