"""The config of a Qwen3 as a flow language model. The file is copied into exported models, beside the modeling file."""

from typing import Any

from transformers import AutoConfig, Qwen3Config

CHOICES = {
    "source": ("mask", "uniform"),
    "scheduler_type": ("polynomial_convex", "linear", "cosine"),
    "time_mode": ("none", "add", "adaln"),
    "time_embedding_type": ("sinusoidal", "learned"),
}
CONDITION_WIDTH = 128  # time_embedding_dim of adaln
LAYERS_ATTENTION = "full_attention"


class FlowMatchingConfig(Qwen3Config):
    """Qwen3's fields, and:

    Attributes:
        is_causal: whether attention is causal, as in Qwen3; False: every token sees all others.
        mask_token_id: row of the token table for the mask; 151669 is the first that Qwen3's tokenizer leaves free.
        real_vocab_size: ids from this one on are never predicted; None: mask_token_id.
        shift: whether token i is predicted at the position before it, as Qwen3 was trained, rather than at its own.
        anchor_token_id: with a shift, the id before the first token of a document, where that token is predicted; None:
            bos_token_id, else the (first) eos_token_id.
        source: noise at t = 0, "mask" or "uniform".
        scheduler_type: kappa(t), the share of tokens known at t: "polynomial_convex" (t^scheduler_n), "linear", or "cosine"
            (1 - cos(pi t / 2)).
        num_sampling_steps: default number of sampling steps.
        time_mode: how t enters: "none"; "add", to the token embeddings; "adaln", as scales, shifts and gates in every layer.
        time_embedding_dim: width of the time embedding's network; None: hidden_size for "add", 128 for "adaln".
        time_embedding_type: frequencies "sinusoidal" (fixed) or "learned" (trained from there).
    """

    model_type = "flow_qwen3"

    is_causal: bool = False
    mask_token_id: int = 151669
    real_vocab_size: int | None = None
    shift: bool = True
    anchor_token_id: int | None = None
    source: str = "mask"
    scheduler_type: str = "polynomial_convex"
    scheduler_n: int | float = 1.0
    num_sampling_steps: int = 32
    time_mode: str = "none"
    time_embedding_dim: int | None = None
    time_embedding_type: str = "sinusoidal"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(
                f"mask_token_id={self.mask_token_id} is no row of the token table ({self.vocab_size} rows): name an unused one"
            )
        if self.real_vocab_size is None:
            self.real_vocab_size = self.mask_token_id
        if not 0 < self.real_vocab_size <= self.vocab_size:
            raise ValueError(f"real_vocab_size must be in [1, {self.vocab_size}], not {self.real_vocab_size}")
        if set(self.layer_types) != {LAYERS_ATTENTION}:
            raise ValueError(f"layer_types {sorted(set(self.layer_types))}: only {LAYERS_ATTENTION} can look both ways")
        if self.shift and self.anchor_token_id is None:
            end = self.eos_token_id[0] if isinstance(self.eos_token_id, list) else self.eos_token_id
            self.anchor_token_id = end if self.bos_token_id is None else self.bos_token_id
            if self.anchor_token_id is None:
                raise ValueError("shift needs a token to stand before the first: set anchor_token_id, or shift to false")

    @property
    def time_width(self) -> int:
        """time_embedding_dim with None resolved."""
        if self.time_embedding_dim is not None:
            return self.time_embedding_dim
        return CONDITION_WIDTH if self.time_mode == "adaln" else self.hidden_size


AutoConfig.register(FlowMatchingConfig.model_type, FlowMatchingConfig, exist_ok=True)
FlowMatchingConfig.register_for_auto_class()
