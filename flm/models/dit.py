"""The diffusion transformer of FLM (arXiv 2602.16813; blocks after arXiv 2212.09748).

B batch, L positions, D width, V vocabulary, H heads of width Dh.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flm.models.attention import attention, rotary_table, rotate
from flm.models.layers import LayerNorm, Modulation, TimeEmbedding
from flm.posterior import TokenPosterior


class DiTBlock(nn.Module):
    """Bidirectional attention and an MLP, each shifted, scaled and gated by the condition; at first the identity."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        cond_dim: int,
        mlp_ratio: int = 4,
        dropout: float = 0.1,
        attention_softcap: float | None = None,
    ):
        super().__init__()
        self.num_heads, self.attention_softcap = num_heads, attention_softcap
        self.norm1 = LayerNorm(hidden_size)
        self.attn_qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.attn_out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.norm2 = LayerNorm(hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, mlp_ratio * hidden_size),
            nn.GELU(approximate="tanh"),
            nn.Linear(mlp_ratio * hidden_size, hidden_size),
        )
        self.adaLN_modulation = Modulation(cond_dim, hidden_size, 6)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, condition: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, L, D), condition (B, cond_dim), rotary tables (L, Dh/2), mask as in `attention`; returns (B, L, D)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(condition)
        mixed = self._mix(self.norm1(x) * (1 + scale_a) + shift_a, cos, sin, mask)
        x = x + gate_a * self.dropout(self.attn_out(mixed))
        return x + gate_m * self.dropout(self.mlp(self.norm2(x) * (1 + scale_m) + shift_m))

    def _mix(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        # (B, L, 3 D) -> three of (B, H, L, Dh); the 3 D rows are all q, all k, all v, each ordered by head
        q, k, v = self.attn_qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return attention(q, k, v, self.attention_softcap, mask=mask).transpose(1, 2).flatten(2)


class OutputLayer(nn.Module):
    """The last modulated norm, and the table (V, D) and bias (V,) that turn it into logits; zero at the start."""

    def __init__(self, vocab_size: int, hidden_size: int, cond_dim: int):
        super().__init__()
        self.norm_final = LayerNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, vocab_size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.adaLN_modulation = Modulation(cond_dim, hidden_size, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, L, D) before the linear layer, which the posterior applies chunk by chunk."""
        shift, scale = self.adaLN_modulation(condition)
        return self.norm_final(x) * (1 + scale) + shift


class DiT(nn.Module):
    """A bidirectional transformer that reads an embedded state and a time, and predicts a distribution per token.

    The state enters already embedded by `input_table` (a noised one-hot x as x @ input_table). Under autocast the
    residual stream, norms and time embeddings keep the precision of the weights; only linear layers and attention
    run in the lower one.

    Args:
        vocab_size: V.
        length: L of the sequences the model is for; `forward` takes any length.
        hidden_size: D, a multiple of 2 * num_heads.
        cond_dim: width of the time embedding.
        mlp_ratio: MLP width over D.
        dropout: on the two residual branches, in training mode.
        output_softcap: bound on the logits, softcap * tanh(logits / softcap); None for none. Published FLM models: 30.
        attention_softcap: the same for attention scores; None allows the fastest attention. Published FLM models: 50.
        time_scale: see `TimeEmbedding`.
        two_times: whether the model is a flow map, told where on the clock it goes beside where it is.

    Attributes:
        input_table: (V, D) parameter, uniform in +-1/sqrt(D) at the start.

    Raises:
        ValueError: hidden_size does not split into heads of even width.
    """

    def __init__(
        self,
        vocab_size: int,
        length: int,
        hidden_size: int,
        num_blocks: int,
        num_heads: int,
        cond_dim: int = 128,
        mlp_ratio: int = 4,
        dropout: float = 0.1,
        output_softcap: float | None = 30.0,
        attention_softcap: float | None = None,
        time_scale: float = 1.0,
        two_times: bool = False,
    ):
        super().__init__()
        if hidden_size % (2 * num_heads):
            raise ValueError(
                f"model.hidden_size={hidden_size} must be a multiple of 2 * model.num_heads = {2 * num_heads}"
            )
        self.vocab_size, self.length, self.hidden_size = vocab_size, length, hidden_size
        self.head_dim = hidden_size // num_heads
        self.output_softcap = output_softcap
        # declared in the order in which published checkpoints list their parameters
        self.input_table = nn.Parameter(torch.empty(vocab_size, hidden_size).uniform_(-1, 1) * hidden_size**-0.5)
        self.time_embedding = TimeEmbedding(cond_dim, scale=time_scale)
        self.second_time_embedding = None
        if two_times:
            self.second_time_embedding = TimeEmbedding(cond_dim, scale=time_scale)
            # so that a flow map starts as the denoiser at its start time, wherever it is told to go
            nn.init.zeros_(self.second_time_embedding.mlp[-1].weight)
            nn.init.zeros_(self.second_time_embedding.mlp[-1].bias)
        self.blocks = nn.ModuleList(
            DiTBlock(hidden_size, num_heads, cond_dim, mlp_ratio, dropout, attention_softcap) for _ in range(num_blocks)
        )
        self.output_layer = OutputLayer(vocab_size, hidden_size, cond_dim)

    def forward(
        self, embedded: Tensor, tau: Tensor, tau_to: Tensor | None = None, mask: Tensor | None = None
    ) -> TokenPosterior:
        """The distribution of each token; arguments as for `hidden`."""
        linear = self.output_layer.linear
        return TokenPosterior(
            self.hidden(embedded, tau, tau_to, mask), linear.weight, linear.bias, softcap=self.output_softcap
        )

    def hidden(self, embedded: Tensor, tau: Tensor, tau_to: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The output layer's input (B, L, D).

        Args:
            embedded: (B, L, D) floating point, the state times `input_table`.
            tau: (B,) in [0, 1], where on the clock the state is.
            tau_to: (B,) in [tau, 1], where on the clock a flow map jumps to; None means tau itself, the denoiser. Only
                for models with two_times.
            mask: bool, broadcastable to (B, H, L, L): True where the row's position may see the column's.

        Raises:
            ValueError: tau_to is given to a model without two_times.
        """
        condition = self._condition(tau, tau_to)
        cos, sin = rotary_table(torch.arange(embedded.shape[1], device=embedded.device), self.head_dim)
        x = embedded
        for block in self.blocks:
            x = block(x, condition, cos, sin, mask)
        return self.output_layer(x, condition)

    def compile_blocks(self) -> None:
        """Compiles each block on its first call: one compilation serves all, since they are alike."""
        for block in self.blocks:
            block.compile()

    def _condition(self, tau: Tensor, tau_to: Tensor | None) -> Tensor:
        embedding = self.time_embedding(tau)
        if self.second_time_embedding is not None:
            embedding = embedding + self.second_time_embedding(tau if tau_to is None else tau_to)
        elif tau_to is not None:
            raise ValueError("tau_to needs a model built with two_times=True")
        return F.silu(embedding)
