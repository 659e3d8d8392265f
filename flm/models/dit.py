"""The diffusion transformer of FLM (arXiv 2602.16813; blocks after arXiv 2212.09748).

B batch, L positions, D width, V vocabulary, H heads of width Dh.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, Lt
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from flm.models.attention import DocumentMask, Neighbours, attention, in_forward_mode, rotary_table, rotate
from flm.models.causal import KeyValues, triangle_after
from flm.models.layers import CellVectors, LayerNorm, Modulation, TimeEmbedding
from flm.posterior import TokenPosterior
from flm.ranges import Count, Scale, Width


class DiTBlock(nn.Module):
    """Attention and an MLP, each shifted, scaled and gated by the condition; the identity at initialisation.

    Without a condition (cond_dim None) it is a plain pre-norm block.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        cond_dim: int | None,
        mlp_ratio: int = 4,
        dropout: float = 0.1,
        attention_softcap: float | None = None,
        causal: bool = False,
    ):
        super().__init__()
        self.num_heads, self.attention_softcap, self.causal = num_heads, attention_softcap, causal
        self.norm1 = LayerNorm(hidden_size)
        self.attn_qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.attn_out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.norm2 = LayerNorm(hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, mlp_ratio * hidden_size),
            nn.GELU(approximate="tanh"),
            nn.Linear(mlp_ratio * hidden_size, hidden_size),
        )
        self.adaLN_modulation = None if cond_dim is None else Modulation(cond_dim, hidden_size, 6)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | BlockMask | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        """x (B, L, D), condition (B, cond_dim), rotary tables (L, Dh/2), mask as in `attention`; returns (B, L, D)."""
        if self.adaLN_modulation is None:
            x = x + self.dropout(self.attn_out(self._mix(self.norm1(x), cos, sin, mask, cache)))
            return x + self.dropout(self.mlp(self.norm2(x)))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(condition)
        mixed = self._mix(self.norm1(x) * (1 + scale_a) + shift_a, cos, sin, mask, cache)
        x = x + gate_a * self.dropout(self.attn_out(mixed))
        return x + gate_m * self.dropout(self.mlp(self.norm2(x) * (1 + scale_m) + shift_m))

    def _mix(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | BlockMask | None, cache: KeyValues | None) -> Tensor:
        # (B, L, 3 D) -> three of (B, H, L, Dh); the 3 D rows are all q, all k, all v, each ordered by head
        q, k, v = self.attn_qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        causal = self.causal
        if cache is not None:
            k, v = cache.extend(k, v)
            causal, mask = triangle_after(q.shape[-2], k.shape[-2], q.device)
        return attention(q, k, v, self.attention_softcap, causal, mask).transpose(1, 2).flatten(2)


class OutputLayer(nn.Module):
    """The last modulated norm, and the table (V, D) and bias (V,) of the logits, which are zero at initialisation."""

    def __init__(self, vocab_size: int, hidden_size: int, cond_dim: int | None):
        super().__init__()
        self.norm_final = LayerNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, vocab_size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.adaLN_modulation = None if cond_dim is None else Modulation(cond_dim, hidden_size, 2)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The input (B, L, D) of the linear layer, which the posterior applies chunk by chunk."""
        if self.adaLN_modulation is None:
            return self.norm_final(x)
        shift, scale = self.adaLN_modulation(condition)
        return self.norm_final(x) * (1 + scale) + shift


class DiT(nn.Module):
    """A transformer that reads an embedded state and a time, and predicts a distribution per token.

    The state comes embedded by `input_table` (a noised one-hot x as x @ input_table). Under autocast the residual stream, norms
    and time embeddings keep the precision of the weights; linear layers and attention run in the lower one.

    Args:
        vocab_size: V.
        length: L of the sequences the model is for; `forward` takes any length.
        hidden_size: D, a multiple of 2 * num_heads.
        cond_dim: width of the time embedding.
        mlp_ratio: MLP width over D.
        dropout: on the two residual branches, in training mode.
        output_softcap: bound on the logits, softcap * tanh(logits / softcap); None: no bound. Published FLM models: 30.
        attention_softcap: the same for attention scores; None allows the fastest attention. Published FLM models: 50.
        time_scale: see `TimeEmbedding`.
        time_insertion: how the time enters. "adaln": it modulates each block, as in published FLM models. "add": a vector is
            added to every position. "token": one more position in front, which sees only itself, so that documents do not
            see each other through it. With the last two, blocks are plain and cond_dim is not used.
        two_times: whether the model is a flow map, conditioned on the end of a jump as well as its start.
        causal: whether a position sees only itself and those before it.
        grid: shape of a grid whose cells are the positions, row by row: [4, 4] for a board, [9] for a line. Each coordinate of
            a cell has a learned vector that is added to its input; positions beyond the grid get none. None: no grid.
        conditioned: whether the model has a time at all. If not, it is the plain pre-norm transformer of the autoregressive
            baseline, and cond_dim, time_scale and time_insertion are not used.
        neighbours: distance up to which neighbours are read before the first block, through one matrix for each distance
            (`Neighbours`); 0: none are. Published models have 0.
        bf16_residual: under bf16 autocast, the residual stream is bf16 too. No effect elsewhere.
        checkpoint_every: every so many blocks, one recomputes its activations in the backward pass instead of keeping them; 1:
            all do; None: none does.

    Attributes:
        input_table: (V, D) parameter, initialised uniform in +-1/sqrt(D).
        captured: called in place of `hidden`, set by `flm.registry.Wing.accelerations`; None: nothing is.

    Raises:
        ValueError: hidden_size does not split into heads of even width; two_times without conditioned; or neighbours in a
            causal model.
    """

    def __init__(
        self,
        vocab_size: Count,
        length: Count,
        hidden_size: Width,
        num_blocks: Width,
        num_heads: Width,
        cond_dim: Width = 128,
        mlp_ratio: Width = 4,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.1,
        output_softcap: Scale | None = 30.0,
        attention_softcap: Scale | None = None,
        time_scale: Scale = 1.0,
        two_times: bool = False,
        causal: bool = False,
        conditioned: bool = True,
        grid: Sequence[int] | None = None,
        neighbours: Annotated[int, Ge(0), Le(256)] = 0,
        bf16_residual: bool = False,
        checkpoint_every: Count | None = None,
        time_insertion: Literal["adaln", "add", "token"] = "adaln",
    ):
        super().__init__()
        self.captured: Callable[..., Tensor] | None = None
        if hidden_size % (2 * num_heads):
            raise ValueError(f"model.hidden_size={hidden_size} must be a multiple of 2 * model.num_heads = {2 * num_heads}")
        if two_times and not conditioned:
            raise ValueError("a model with two_times must be conditioned")
        if neighbours and causal:
            raise ValueError("model.neighbours is for models that see both ways: set it to 0 where causal=True")
        self.vocab_size, self.length, self.hidden_size = vocab_size, length, hidden_size
        self.causal, self.bf16_residual, self.checkpoint_every = causal, bf16_residual, checkpoint_every
        self.head_dim = hidden_size // num_heads
        self.output_softcap, self.time_insertion = output_softcap, time_insertion
        modulated = conditioned and time_insertion == "adaln"
        time_width = cond_dim if modulated else hidden_size
        # declared in the order in which published checkpoints list their parameters
        self.input_table = nn.Parameter(torch.empty(vocab_size, hidden_size).uniform_(-1, 1) * hidden_size**-0.5)
        self.time_embedding = TimeEmbedding(time_width, scale=time_scale) if conditioned else None
        self.cells = None if grid is None else CellVectors(grid, hidden_size)
        self.neighbours = Neighbours(hidden_size, neighbours) if neighbours else None
        self.second_time_embedding = None
        if two_times:
            self.second_time_embedding = TimeEmbedding(time_width, scale=time_scale)
            # at initialisation the prediction does not depend on the end of the jump
            self.second_time_embedding.start_at_zero()
        if conditioned and time_insertion == "add":
            self.time_embedding.start_at_zero()  # else it would be much larger than the embedded tokens
        block_cond_dim = cond_dim if modulated else None
        self.blocks = nn.ModuleList(
            DiTBlock(hidden_size, num_heads, block_cond_dim, mlp_ratio, dropout, attention_softcap, causal)
            for _ in range(num_blocks)
        )
        self.output_layer = OutputLayer(vocab_size, hidden_size, block_cond_dim)

    def forward(
        self,
        embedded: Tensor,
        tau: Tensor | None = None,
        tau_to: Tensor | None = None,
        mask: Tensor | DocumentMask | None = None,
        cache: Sequence[KeyValues] | None = None,
    ) -> TokenPosterior:
        """The distribution of each token; arguments as for `hidden`."""
        hidden = (self.captured or self.hidden)(embedded, tau, tau_to, mask, cache)
        linear = self.output_layer.linear
        return TokenPosterior(hidden, linear.weight, linear.bias, softcap=self.output_softcap)

    def hidden(
        self,
        embedded: Tensor,
        tau: Tensor | None = None,
        tau_to: Tensor | None = None,
        mask: Tensor | DocumentMask | None = None,
        cache: Sequence[KeyValues] | None = None,
    ) -> Tensor:
        """The output layer's input (B, L, D).

        Args:
            embedded: (B, L, D) floating point, the state times `input_table`.
            tau: (B,) in [0, 1], clock time of the state; None for a model that is not conditioned.
            tau_to: (B,) in [tau, 1], clock time that a flow map jumps to; None: tau itself, the denoiser. Only for models
                with two_times.
            mask: documents; or bool, broadcastable to (B, H, L, L), True where the row's position may see the column's.
            cache: of a causal model (`new_cache`), without a mask: the positions read so far. `embedded` continues them and is
                added to it.

        Raises:
            ValueError: a time is missing, or given to a model that does not take it; a cache is full, or given to a
                model that is not causal, or together with a mask.
        """
        condition = self._condition(tau, tau_to)
        own_token = condition is not None and self.time_insertion == "token"
        if cache is not None and (mask is not None or not self.causal or own_token):
            raise ValueError("a cache needs a model built with causal=True and without a token of the time, and no mask")
        start = 0 if cache is None else cache[0].length
        positions = torch.arange(start, start + embedded.shape[1] + own_token, device=embedded.device)
        cos, sin = rotary_table(positions, self.head_dim)
        x = embedded if self.cells is None else self.cells(embedded, positions[: embedded.shape[1]])
        x = x if self.neighbours is None else self.neighbours(x, mask)
        if own_token:
            mask = behind_a_token(mask.dense if isinstance(mask, DocumentMask) else mask, embedded)
        if condition is not None and self.time_insertion != "adaln":
            vector, condition = condition[:, None].to(x.dtype), None
            x = torch.cat((vector, x), 1) if own_token else x + vector
        device = x.device.type
        if self.bf16_residual and torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16:
            x = x.bfloat16()
        keeps = not torch.is_grad_enabled() or self.checkpoint_every is None
        seen = mask.for_kernels(x, self.head_dim, self.causal) if isinstance(mask, DocumentMask) else mask
        for index, block in enumerate(self.blocks):
            if cache is not None:  # never the compiled block: shapes change at every call
                x = block.forward(x, condition, cos, sin, cache=cache[index])
            elif in_forward_mode():
                x = block.forward(x, condition, cos, sin, seen)
            elif keeps or index % self.checkpoint_every:
                x = block(x, condition, cos, sin, seen)
            else:
                x = checkpoint(block, x, condition, cos, sin, seen, use_reentrant=False)
        return self.output_layer(x[:, int(own_token) :], condition)

    def new_cache(self, capacity: int) -> list[KeyValues]:
        """An empty cache for sequences of up to `capacity` positions that are read piece by piece."""
        return [KeyValues(capacity) for _ in self.blocks]

    def compile_blocks(self, mode: str = "default") -> None:
        """Compiles each block on its first call: one compilation serves all, since they are alike.

        Parameters keep their names. `mode` is torch.compile's.
        """
        for block in self.blocks:
            block.compile(mode=mode)

    def use_fp8(self, emulate: bool) -> None:
        """From now on the blocks' matrix products, and those of their gradients, run in fp8 by torchao. Parameters stay.

        Args:
            emulate: only round as fp8 does, for devices without fp8 products.
        """
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        config = Float8LinearConfig(emulate=emulate)
        for block in self.blocks:
            convert_to_float8_training(block, config=config, module_filter_fn=lambda layer, _: type(layer) is nn.Linear)

    def flops_per_token(self, length: int) -> int:
        """Floating-point operations of one evaluation, forward, per token of sequences of `length`.

        2 for each parameter of a matrix that multiplies every token (blocks, neighbours and output table), and 4 L D per block
        for the scores and mixing of attention, not halved if it is causal. The input table is only gathered, and modulations
        and time embedding are computed once per sequence, so they do not count.
        """
        matrices = sum(
            layer.weight.numel()
            for block in self.blocks
            for layer in block.modules()
            if isinstance(layer, nn.Linear) and not isinstance(layer, Modulation)
        )
        matrices += 0 if self.neighbours is None else self.neighbours.weight.numel()
        return 2 * (matrices + self.output_layer.linear.weight.numel()) + 4 * length * self.hidden_size * len(self.blocks)

    def _condition(self, tau: Tensor | None, tau_to: Tensor | None) -> Tensor | None:
        if self.time_embedding is None:
            if tau is not None or tau_to is not None:
                raise ValueError("a model built with conditioned=False takes no time")
            return None
        if tau is None:
            raise ValueError("a conditioned model needs tau")
        embedding = self.time_embedding(tau)
        if self.second_time_embedding is not None:
            embedding = embedding + self.second_time_embedding(tau if tau_to is None else tau_to)
        elif tau_to is not None:
            raise ValueError("tau_to needs a model built with two_times=True")
        return F.silu(embedding) if self.time_insertion == "adaln" else embedding


def behind_a_token(mask: Tensor | None, x: Tensor) -> Tensor:
    """A mask of x (B, L, D) extended by one position in front, which all see and which sees only itself."""
    length = x.shape[1]
    if mask is None:
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=x.device)
    mask = F.pad(mask.expand(*mask.shape[:-2], length, length), (1, 0, 1, 0), value=True)
    mask[..., 0, 1:] = False
    return mask
