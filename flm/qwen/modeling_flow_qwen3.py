"""Qwen3 as a flow language model for transformers: predicts every token of a corrupted sequence, with bidirectional attention.

The file is copied into exported models, beside its configuration file. The two need only torch and transformers (5.2 or newer).
t is 0 at the source (noise) and 1 at the data. B batch, L length, D width, V rows of the token table.
"""

import math
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, Qwen3ForCausalLM
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3Model

from .configuration_flow_qwen3 import LAYERS_ATTENTION, FlowMatchingConfig

TIME_FEATURES = 256
NEW = "time_"  # in the name of every parameter that Qwen3 lacks


class ZeroLinear(nn.Linear):
    """A linear layer that begins at zero. transformers initialises weights that a checkpoint lacks by the module's class."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class TimeEmbedding(nn.Module):
    """Embeds t (B,) in [0, 1] as vectors (B, out): Linear, SiLU and Linear on 256 cosines and sines, computed in fp32.

    Args:
        width: of the hidden layer.
        out: width of the embedding; None: width.
        learned: whether the frequencies are trained.
        zero: whether the second layer begins at zero.
    """

    def __init__(self, width: int, out: int | None = None, learned: bool = False, zero: bool = False):
        super().__init__()
        self.learned = learned
        if learned:
            self.time_frequencies = nn.Parameter(frequencies())
        self.first = nn.Linear(TIME_FEATURES, width)
        self.last = (ZeroLinear if zero else nn.Linear)(width, width if out is None else out)

    def forward(self, t: Tensor) -> Tensor:
        with torch.autocast(t.device.type, enabled=False):
            rates = self.time_frequencies.float() if self.learned else frequencies(t.device)
            angle = t.float()[:, None] * rates
            features = torch.cat((angle.cos(), angle.sin()), -1)
            return self.last(F.silu(self.first(features.to(self.first.weight.dtype))))


def frequencies(device: torch.device | None = None) -> Tensor:
    """Angular frequencies (128,) fp32 in radians per unit of t, a geometric sequence from 1000 down to about 0.1."""
    half = TIME_FEATURES // 2
    steps = torch.arange(half, dtype=torch.float32, device=device)
    return 1000 * torch.exp(steps * (-math.log(10000.0) / half))


class ModulatedDecoderLayer(Qwen3DecoderLayer):
    """A layer of Qwen3 whose two branches are scaled, shifted and gated by t. Gates are 1 + g, so that g = 0 keeps Qwen3."""

    def __init__(self, config: FlowMatchingConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.time_modulation = ZeroLinear(config.time_width, 6 * config.hidden_size)

    def forward(self, hidden_states: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        change = self.time_modulation(condition.to(self.time_modulation.weight.dtype))[:, None]
        scale, shift, gate, mlp_scale, mlp_shift, mlp_gate = change.to(hidden_states.dtype).chunk(6, -1)
        branch, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states) * (1 + scale) + shift, **kwargs)
        hidden_states = hidden_states + (1 + gate) * branch
        branch = self.mlp(self.post_attention_layernorm(hidden_states) * (1 + mlp_scale) + mlp_shift)
        return hidden_states + (1 + mlp_gate) * branch


class _Initialized:
    """Initialises weights that a checkpoint lacks. transformers calls it on the innermost model that contains a module."""

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, TimeEmbedding) and module.learned:
            init.copy_(module.time_frequencies, frequencies())
        else:
            super()._init_weights(module)


class TimedQwen3Model(_Initialized, Qwen3Model):
    """Qwen3's layers, modulated by t if time_mode is "adaln"."""

    def __init__(self, config: FlowMatchingConfig):
        super().__init__(config)
        self.embed_tokens.padding_idx = None  # where padding is an end token too, its row would get no gradient
        if config.time_mode == "adaln":
            layers = [ModulatedDecoderLayer(config, index) for index in range(config.num_hidden_layers)]
            self.layers = nn.ModuleList(layers)
            self.post_init()


class Frame(NamedTuple):
    """The input of the layers: anchors first, then the tokens, N positions in all.

    Attributes:
        tokens: (B, N).
        documents: (B, N), -1 on padding; None: all positions of a row see each other.
        positions: (B, N), counted from 0 at each document's anchor; None: counted along the row.
        predictor: (B, L), the position among the N at which each token is predicted; None: the first L.
    """

    tokens: Tensor
    documents: Tensor | None
    positions: Tensor | None
    predictor: Tensor | None


def frame_of(tokens: Tensor, documents: Tensor | None, anchor: int | None, multiple: int = 1) -> Frame:
    """The layers' input for tokens (B, L). Documents (B, L) are runs of one id, and -1 on padding.

    Args:
        anchor: id before every document; None: no anchors, and each token is predicted at its own position. Attention knows
            the order from `positions` alone, so all anchors of a row can be at its beginning.
        multiple: the number of anchors in a row is rounded up to a multiple of this, since code is compiled for each N.
    """
    batch, length = tokens.shape
    if documents is None:
        front = tokens.new_full((batch, 0 if anchor is None else 1), anchor or 0)
        return Frame(torch.cat((front, tokens), 1), None, None, None)
    index = torch.arange(length, device=tokens.device).expand(batch, -1)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    positions = index - torch.where(begins, index, 0).cummax(1).values
    if anchor is None:
        return Frame(tokens, documents, positions, None)
    begins &= documents >= 0
    rank = begins.cumsum(1) - 1
    count = -(-max(1, int(begins.sum(1).max())) // multiple) * multiple  # with fewer documents some anchors are padding
    owner = documents.new_full((batch, count + 1), -1)  # the last column takes what begins no document
    owner = owner.scatter(1, torch.where(begins, rank, count), documents)[:, :count]
    predictor = torch.where(begins, rank, count + index - 1)
    return Frame(
        torch.cat((tokens.new_full((batch, count), anchor), tokens), 1),
        torch.cat((owner, documents), 1),
        torch.cat((positions.new_zeros(batch, count), positions + 1), 1),
        predictor,
    )


def aligned(hidden: Tensor, frame: Frame, length: int) -> Tensor:
    """Of hidden states (B, N, D), those (B, L, D) of which the i-th predicts token i. Only this function applies the shift."""
    if frame.predictor is None:
        return hidden[:, :length]
    return hidden.gather(1, frame.predictor[..., None].expand(-1, -1, hidden.shape[-1]))


class FlowMatchingLanguageModel(_Initialized, Qwen3ForCausalLM):
    """Maps token ids, and t, to logits of every token given the whole sequence.

    Weights have Qwen3's names, so `from_pretrained` takes its checkpoints. The mask's row then becomes the mean of all tokens',
    and the conditioning on t begins at zero, so the network differs from Qwen3 only in the direction of attention.

    Attributes:
        future_share: float or None. In training, each earlier token sees each later one with this probability (arXiv
            2410.17891), drawn by torch's global generator once per call for all rows; None: all are seen.
    """

    config_class = FlowMatchingConfig
    config: FlowMatchingConfig
    _no_split_modules: ClassVar[list[str]] = ["Qwen3DecoderLayer", "ModulatedDecoderLayer"]

    def __init__(self, config: FlowMatchingConfig):
        super(Qwen3ForCausalLM, self).__init__(config)  # Qwen3ForCausalLM's would build a second set of layers
        self.vocab_size, self.future_share = config.vocab_size, None
        self.model = TimedQwen3Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        learned, width = config.time_embedding_type == "learned", config.time_width
        if config.time_mode == "add":
            self.time_embedding = TimeEmbedding(width, config.hidden_size, learned, zero=True)
        elif config.time_mode == "adaln":
            self.time_embedding = TimeEmbedding(width, width, learned)
        self.post_init()

    @property
    def is_annealed(self) -> bool:
        """Whether later tokens may be hidden."""
        return self.training and self.future_share is not None and self.future_share < 1

    def encode(self, tokens: Tensor, t: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """Final hidden states (B, L, D), the i-th of which predicts token i.

        Args:
            tokens: (B, L) corrupted sequences.
            t: (B,) in [0, 1]; not read if time_mode is "none".
            documents: (B, L), runs of positions that belong together, -1 on padding; None: rows are whole.

        Raises:
            ValueError: time_mode asks for t and there is none.
        """
        multiple = 64 if self.config._attn_implementation == "flex_attention" else 1
        frame = frame_of(tokens, documents, self.config.anchor_token_id if self.config.shift else None, multiple)
        embedded, options = self.embedded(frame.tokens, t)
        found = self.model(
            inputs_embeds=embedded,
            attention_mask=self._attention_mask(frame, embedded),
            position_ids=frame.positions,
            use_cache=False,
            **options,
        )
        return aligned(found.last_hidden_state, frame, tokens.shape[1])

    def embedded(self, tokens: Tensor, t: Tensor | None) -> tuple[Tensor, dict[str, Any]]:
        """The embeddings (B, N, D) of tokens (B, N), and further arguments of the layers."""
        embedded, mode = self.model.embed_tokens(tokens), self.config.time_mode
        if mode == "none":
            return embedded, {}
        if t is None:
            raise ValueError(f"time_mode={mode}: the model needs t, the time of each sequence in [0, 1]")
        features = self.time_embedding(t)
        added = features[:, None].to(embedded.dtype) if mode == "add" else None
        return (embedded, {"condition": F.silu(features)}) if added is None else (embedded + added, {})

    def forward(
        self,
        input_ids: Tensor,
        t: Tensor | None = None,
        attention_mask: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Logits (B, L, V), the i-th of which are of token i, mask and unused rows included.

        Args:
            input_ids, t, documents: as in `encode`.
            attention_mask: (B, L), 0 on padding, wherever it is.
        """
        if attention_mask is not None:
            whole = torch.zeros_like(input_ids) if documents is None else documents
            documents = whole.masked_fill(attention_mask == 0, -1)
        return MaskedLMOutput(logits=self.lm_head(self.encode(input_ids, t, documents)))

    def _attention_mask(self, frame: Frame, embedded: Tensor) -> dict[str, Any] | None:
        """The mask; None if rows are whole documents, with full or causal attention, since kernels are fastest without one."""
        if frame.documents is None and not self.is_annealed:
            return None
        if self.config._attn_implementation.startswith("flash"):
            raise ValueError(
                f"attn_implementation={self.config._attn_implementation} takes no mask: packed or padded rows need sdpa, eager "
                "or flex_attention"
            )
        size, device = frame.tokens.shape[1], embedded.device
        documents = torch.zeros_like(frame.tokens) if frame.documents is None else frame.documents
        positions = torch.arange(size, device=device).expand_as(documents) if frame.positions is None else frame.positions
        future = torch.full((size, size), not self.config.is_causal, device=device)
        if self.is_annealed:
            future = torch.rand(size, size, device=device) < self.future_share

        def seen(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            earlier = positions[batch, column] <= positions[batch, row]
            return (documents[batch, row] == documents[batch, column]) & (earlier | future[row, column])

        mask = create_bidirectional_mask(self.config, embedded, None, and_mask_function=seen)
        return {LAYERS_ATTENTION: mask}

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, config: FlowMatchingConfig | None = None, **kwargs: Any) -> Any:
        """A model of this class from its own checkpoint or from a Qwen3's. Only safetensors are read, and no code is run.

        Args:
            path: folder, or name on the hub.
            config: None: the folder's own.
            args, kwargs: as in transformers. With config=None, keywords that are fields of the config change it.

        Raises:
            ValueError: weights are missing (other than those of a time conditioning that is new), or unexpected.
        """
        wants_report = kwargs.pop("output_loading_info", False)
        where = {k: kwargs[k] for k in ("cache_dir", "revision", "local_files_only", "token", "subfolder") if k in kwargs}
        stored, _ = FlowMatchingConfig.get_config_dict(path, **where)
        if config is None:
            changed = {item.name: kwargs.pop(item.name) for item in fields(FlowMatchingConfig) if item.name in kwargs}
            if "dtype" in changed:  # of the weights, and only so of the config
                kwargs["dtype"] = changed.pop("dtype")
            kept = {key: value for key, value in stored.items() if key not in ("model_type", "architectures", "auto_map")}
            config = FlowMatchingConfig(**kept | changed)
        options = {"config": config, "use_safetensors": True, "output_loading_info": True}
        model, report = super().from_pretrained(path, *args, **kwargs, **options)
        own = stored.get("model_type") == FlowMatchingConfig.model_type
        had_time = stored.get("time_mode", "none") if own else "none"
        new = {name for name, _ in model.named_parameters() if NEW in name} if had_time == "none" else set()
        missing = set(report["missing_keys"])
        wrong = [f"{key} missing" for key in sorted(missing - new)]
        wrong += [f"{key} found, though {path} has no time conditioning" for key in sorted(new - missing)]
        wrong += [f"{key} unexpected" for key in sorted(report["unexpected_keys"])]
        if wrong:
            raise ValueError(f"{path}: the weights do not fit the model: {'; '.join(wrong[:4])} ({len(wrong)} in all)")
        if model.config.tie_word_embeddings and model.lm_head.weight is not model.model.embed_tokens.weight:
            raise ValueError(f"{path}: config.json ties the output table to the input table, but they are two tensors")
        if not own and config.source == "mask":
            model.initialize_mask_row()
        return (model, report) if wants_report else model

    @torch.no_grad()
    def initialize_mask_row(self) -> None:
        """Sets the mask's row, which is untrained, to the mean of the tokens' rows."""
        real, mask = self.config.real_vocab_size, self.config.mask_token_id
        table = self.model.embed_tokens.weight
        total = table[:real].sum(0, dtype=torch.float64)
        if mask < real:
            total, real = total - table[mask], real - 1
        table[mask] = (total / real).to(table.dtype)

    @classmethod
    def can_generate(cls) -> bool:
        return False

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Raises ValueError: the inherited method writes from left to right, for which this model was not trained."""
        raise ValueError("this model fills all positions at once: use flm.qwen.flow_matching.FlowMatchingSampler, or flm.load")


AutoModelForMaskedLM.register(FlowMatchingConfig, FlowMatchingLanguageModel, exist_ok=True)
FlowMatchingLanguageModel.register_for_auto_class("AutoModelForMaskedLM")
