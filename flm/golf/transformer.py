"""The causal transformer of the parameter-golf track, built for a small file from many parts that can be switched off.

B batch, L positions, D width, V vocabulary, H heads of width Dh.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, MultipleOf
from torch import Tensor, nn

from flm.golf.attention import GolfAttention, stretched_base
from flm.golf.parts import BigramTable, LeakySquareMLP, SmearGate, rms_norm
from flm.models.attention import rotary_table
from flm.models.causal import KeyValues
from flm.posterior import TokenPosterior
from flm.ranges import Count, Index, NonNegative, Scale, Width


class GolfBlock(nn.Module):
    """Attention and an MLP on a residual stream x, which is first mixed with the network's input x0.

        x <- m0 x + m1 x0,   x <- x + a Attention(r RMSNorm(x)),   x <- x + b MLP(r RMSNorm(x))

    m0, m1, a and b, each (D,), are learned from 1, 0, 1 and 1. The block starts as the identity, because the output matrices
    of attention and MLP start at zero. The caller sets r. Without `mix_input` there is no m0 and m1.
    """

    def __init__(self, attention: GolfAttention, mlp: LeakySquareMLP, dim: int, mix_input: bool):
        super().__init__()
        self.attention, self.mlp = attention, mlp
        self.stream_gain = nn.Parameter(torch.ones(dim)) if mix_input else None
        self.input_gain = nn.Parameter(torch.zeros(dim)) if mix_input else None
        self.attention_gain, self.mlp_gain = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        scale: Tensor,
        cos: Tensor,
        sin: Tensor,
        first_values: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The stream (B, L, D), and the values that `GolfAttention` returns.

        Args:
            x, x0: (B, L, D).
            scale: r, a scalar.
            cos, sin, first_values, cache: see `GolfAttention.forward`.
        """
        if self.stream_gain is not None:
            x = self.stream_gain * x + self.input_gain * x0
        read, values = self.attention(scale * rms_norm(x), cos, sin, first_values, cache)
        x = x + self.attention_gain * read
        return x + self.mlp_gain * self.mlp(scale * rms_norm(x)), values


@dataclass
class GolfCache:
    """The state of a network that has read the beginning of B sequences.

    Attributes:
        blocks: keys and values of each block.
        recent: (B, n), the last n <= 2 tokens read, which the embedding of the next ones needs; None: nothing has been read.
    """

    blocks: list[KeyValues]
    recent: Tensor | None = None


class GolfTransformer(nn.Module):
    """p(token_i | the tokens before it) at every position of a block, for any length (`flm.models.causal.LeftToRight`).

    Position i reads token i - 1, and position 0 reads the token `start_id`, so every token of a block is predicted, also the
    first. Input and output share one table. With the default arguments all parts are on, except the stop of the smear gate.

    Args:
        vocab_size: V.
        length: L of the sequences that the model is for. It sets the rotary base, which must not depend on how much has been
            read, since later tokens would then change earlier predictions. `forward` takes any length.
        hidden_size: D.
        num_blocks: number of blocks; there are num_blocks // 2 skips.
        num_heads: H.
        queries_per_key: query heads for each key-value head.
        mlp_ratio: MLP width over D.
        start_id: the token that is read before the first one; it begins a document.
        rotary_dims: even number of dimensions of a head that are rotated; null: all.
        rotary_native_length: the rotary base is stretched for a longer `length`, see `stretched_base`; null: never.
        query_gain: initial value of the learned gain of each query head.
        exclusive, value_residual, gated: see `GolfAttention`.
        norm_scale: whether the normalised inputs of the i-th block are divided by sqrt(i), i from 1.
        mix_input: whether blocks mix the network's input into the stream, see `GolfBlock`.
        skips: whether the outputs of the first half of the blocks are added to the inputs of the second half, the last
            output first, each times a learned gain (D,).
        smear: whether embeddings pass a `SmearGate`.
        smear_stop_id: see `SmearGate`.
        bigram_rows, bigram_width, bigram_multipliers: see `BigramTable`; bigram_rows null: no table.
        leaky_slope: see `LeakySquareMLP`.
        output_softcap: bound on the absolute value of logits; null: none.
        embedding_std: initial standard deviation of the table.
        causal, conditioned: what the algorithm asks for; it must be a causal network that does not read a time.

    Raises:
        ValueError: the algorithm asks for another kind of network, sizes do not fit together, or start_id is no token id.
    """

    def __init__(
        self,
        vocab_size: Count,
        length: Count,
        hidden_size: Width = 512,
        num_blocks: Width = 11,
        num_heads: Width = 8,
        queries_per_key: Width = 2,
        mlp_ratio: Width = 3,
        start_id: Index = 1,
        rotary_dims: Annotated[int, Ge(2), MultipleOf(2)] | None = 16,
        rotary_native_length: Count | None = 1024,
        query_gain: Scale = 1.5,
        exclusive: bool = True,
        value_residual: bool = True,
        gated: bool = True,
        norm_scale: bool = True,
        mix_input: bool = True,
        skips: bool = True,
        smear: bool = True,
        smear_stop_id: Index | None = None,
        bigram_rows: Annotated[int, Ge(2)] | None = 4096,
        bigram_width: Width = 128,
        bigram_multipliers: tuple[int, int] = (36313, 27191),
        leaky_slope: float = 0.5,
        output_softcap: Scale | None = 30.0,
        embedding_std: NonNegative = 0.005,
        causal: bool = False,
        conditioned: bool = True,
    ):
        super().__init__()
        if not causal or conditioned:
            raise ValueError("this model only reads from left to right: take algo=native_flow or algo=ar, or another model")
        if hidden_size % num_heads or num_heads % queries_per_key:
            raise ValueError(
                f"model.hidden_size={hidden_size} must be a multiple of model.num_heads={num_heads}, and that of "
                f"model.queries_per_key={queries_per_key}"
            )
        head_dim = hidden_size // num_heads
        rotary_dims = head_dim if rotary_dims is None else rotary_dims
        if rotary_dims > head_dim or rotary_dims % 2:
            raise ValueError(f"model.rotary_dims={rotary_dims} must be even and at most the width of a head, {head_dim}")
        if start_id >= vocab_size:
            raise ValueError(f"model.start_id={start_id} must be a token id, in [0, {vocab_size})")
        self.vocab_size, self.length, self.hidden_size = vocab_size, length, hidden_size
        self.start_id, self.output_softcap = start_id, output_softcap
        self.rotary_dims, self.norm_scale = rotary_dims, norm_scale
        self.rotary_base = stretched_base(10000.0, rotary_dims, length, rotary_native_length)
        self.input_table = nn.Parameter(torch.empty(vocab_size, hidden_size).normal_(std=embedding_std))
        self.bigram = None
        if bigram_rows is not None:
            gain = (2 * num_blocks) ** -0.5
            self.bigram = BigramTable(hidden_size, bigram_rows, bigram_width, bigram_multipliers, gain)
        self.smear = SmearGate(hidden_size, smear_stop_id) if smear else None
        self.blocks = nn.ModuleList(
            GolfBlock(
                GolfAttention(
                    hidden_size, num_heads, queries_per_key, query_gain, exclusive, value_residual, gated, index == 0
                ),
                LeakySquareMLP(hidden_size, mlp_ratio, leaky_slope),
                hidden_size,
                mix_input,
            )
            for index in range(num_blocks)
        )
        self.skip_gain = nn.Parameter(torch.ones(num_blocks // 2, hidden_size)) if skips else None

    def forward(self, tokens: Tensor, cache: GolfCache | None = None) -> TokenPosterior:
        """The predictions (B, L) of tokens (B, L); the i-th predicts token i from the tokens before it.

        With a cache the tokens (B, n) continue what it has read, and the predictions (B, n) are those of the token after each.
        If the cache is empty, the prediction of the first token of the sequence comes first, so there are n + 1.
        """
        if cache is None:
            tokens = tokens[:, :-1]
        if cache is None or cache.recent is None:
            tokens = F.pad(tokens, (1, 0), value=self.start_id)
        x = x0 = self._embedded(tokens, cache)
        start = 0 if cache is None else cache.blocks[0].length
        positions = torch.arange(start, start + tokens.shape[1], device=x.device)
        cos, sin = rotary_table(positions, self.rotary_dims, self.rotary_base)
        # a tensor, because Python numbers would make every block compile by itself
        depth = torch.arange(1, len(self.blocks) + 1, device=x.device, dtype=x.dtype)
        scales = depth.rsqrt() if self.norm_scale else torch.ones_like(depth)
        first_values, outputs = None, []
        for index, block in enumerate(self.blocks):
            if self.skip_gain is not None and outputs and index >= len(self.blocks) // 2:
                x = x + self.skip_gain[index - len(self.blocks) // 2] * outputs.pop()
            if cache is None:
                x, values = block(x, x0, scales[index], cos, sin, first_values)
            else:  # not the compiled block, because shapes change at every call
                x, values = block.forward(x, x0, scales[index], cos, sin, first_values, cache.blocks[index])
            first_values = values if first_values is None else first_values
            if index < len(self.blocks) // 2:
                outputs.append(x)
        return TokenPosterior(rms_norm(x), self.input_table, softcap=self.output_softcap)

    def new_cache(self, capacity: int) -> GolfCache:
        """An empty cache for `next_token`.

        Args:
            capacity: positions that will be read, with the start: L to write L tokens.
        """
        return GolfCache([KeyValues(capacity) for _ in self.blocks])

    @torch.no_grad()
    def next_token(self, tokens: Tensor, cache: GolfCache) -> TokenPosterior:
        """The prediction (B, 1) of the token after `tokens` (B, n), which continue what `cache` has read.

        The tokens are added to the cache. If it was empty they begin the sequence, and n may be 0.
        """
        posterior = self(tokens, cache)
        return replace(posterior, hidden=posterior.hidden[:, -1:])

    def compile_blocks(self, mode: str = "default") -> None:
        """Compiles each block on its first call. Parameters keep their names. `mode` is torch.compile's."""
        for block in self.blocks:
            block.compile(mode=mode)

    def flops_per_token(self, length: int) -> int:
        """Floating-point operations of a forward pass per token, for sequences of `length`.

        These are 2 for each parameter of a matrix that multiplies every token, and 4 * length * D for attention in each block.
        """
        matrices = sum(layer.weight.numel() for layer in self.modules() if isinstance(layer, nn.Linear))
        return 2 * (matrices + self.input_table.numel()) + 4 * length * self.hidden_size * len(self.blocks)

    def _embedded(self, tokens: Tensor, cache: GolfCache | None) -> Tensor:
        """The network's input x0 (B, n, D) for tokens (B, n). It depends on each token and the two before it.

        The last tokens are kept in the cache, if there is one.
        """
        new = tokens.shape[1]
        if cache is not None:
            tokens = tokens if cache.recent is None else torch.cat((cache.recent, tokens), dim=1)
            cache.recent = tokens[:, -2:]
        x = F.embedding(tokens, self.input_table)
        if self.bigram is not None:
            x = x + self.bigram(tokens)
        x = rms_norm(x)
        if self.smear is not None:
            x = self.smear(x, tokens)
        return x[:, tokens.shape[1] - new :]
