"""The network of the embedding flow: a bidirectional post-norm transformer that reads and writes token embeddings.

B batch, L positions, D width, V vocabulary, H heads.
"""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

from flm.models.attention import DocumentMask, attention
from flm.models.layers import TimeEmbedding
from flm.ranges import Count, Scale, Width

_EPS = 1e-12  # as in BERT's layer norms


class PostNormBlock(nn.Module):
    """x <- LN(x + attention(x)), then x <- LN(x + MLP(x)), with biases. Dropout is on attention weights and both branches."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: int, dropout: float):
        super().__init__()
        self.num_heads, self.attention_dropout = num_heads, dropout
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)
        self.norm1 = nn.LayerNorm(hidden_size, eps=_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, mlp_ratio * hidden_size), nn.GELU(), nn.Linear(mlp_ratio * hidden_size, hidden_size)
        )
        self.norm2 = nn.LayerNorm(hidden_size, eps=_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The new x (B, L, D).

        Args:
            mask: bool, broadcastable to (B, H, L, L), True where the position of the row may see that of the column. None:
                every position sees all.
        """
        x = self.norm1(x + self.dropout(self.out(self._mix(x, mask))))
        return self.norm2(x + self.dropout(self.mlp(x)))

    def _mix(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if self.training and self.attention_dropout > 0:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.attention_dropout)
        else:
            mixed = attention(q, k, v, mask=mask)
        return mixed.transpose(1, 2).flatten(-2)


class FlowEncoder(nn.Module):
    """Maps a state (B, L, D) of token embeddings, noised or clean, and a time to D numbers at every position.

    Embeddings are as wide as the network, and enter it without a projection.

    Args:
        vocab_size: V.
        length: the largest L.
        hidden_size: D, even and a multiple of num_heads.
        num_blocks: number of `PostNormBlock`s.
        num_heads: H.
        mlp_ratio: MLP width over D.
        dropout: on the input, on attention weights, and on both branches of each block.
        time_scale: see `TimeEmbedding`; with 1, as published, the features of different times hardly differ.
        out_head: "ln" returns the output of the last norm. The norm fixes its size at every position, so it cannot equal
            the velocity of most states. "linear" adds a linear layer, which starts at zero.
        embed_norm: "none": a free table, drawn from N(0, 1). "unit": rows are scaled to length sqrt(D), so that their size
            cannot be learned. "frozen": as "unit", but not trained.
        logit_bias: whether logits have a learned bias.
        self_condition: whether the network also reads the previous estimate of the clean state.
        weight_dtype: dtype of all parameters; there is no copy in fp32. In "bfloat16" an update of 1e-5 is lost for nine
            weights in ten, so it is for reproduction only.

    Raises:
        ValueError: hidden_size is odd or no multiple of num_heads.
    """

    def __init__(
        self,
        vocab_size: Count,
        length: Count,
        hidden_size: Width = 512,
        num_blocks: Width = 6,
        num_heads: Width = 8,
        mlp_ratio: Width = 4,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.1,
        time_scale: Scale = 1000.0,
        out_head: Literal["linear", "ln"] = "linear",
        embed_norm: Literal["none", "unit", "frozen"] = "unit",
        logit_bias: bool = False,
        self_condition: bool = False,
        weight_dtype: Literal["float32", "bfloat16"] = "float32",
    ):
        super().__init__()
        if hidden_size % num_heads or hidden_size % 2:
            raise ValueError(f"model.hidden_size={hidden_size} must be even and a multiple of model.num_heads={num_heads}")
        self.length, self.hidden_size, self.embed_norm = length, hidden_size, embed_norm
        self.embedding = nn.Parameter(torch.randn(vocab_size, hidden_size), requires_grad=embed_norm != "frozen")
        self.positions = nn.Parameter(torch.randn(length, hidden_size))
        self.time_embedding = PlainTimeEmbedding(hidden_size, mlp_ratio, time_scale)
        self.estimate = nn.Linear(hidden_size, hidden_size, bias=False) if self_condition else None
        if self.estimate is not None:
            nn.init.zeros_(self.estimate.weight)
        self.norm = nn.LayerNorm(hidden_size, eps=_EPS)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(PostNormBlock(hidden_size, num_heads, mlp_ratio, dropout) for _ in range(num_blocks))
        self.head = nn.Linear(hidden_size, hidden_size) if out_head == "linear" else None
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        self.logit_bias = nn.Parameter(torch.zeros(vocab_size)) if logit_bias else None
        self.to(getattr(torch, weight_dtype))

    @property
    def input_table(self) -> Tensor:
        """The embeddings (V, D) after `embed_norm`, in fp32 or better."""
        table = self.embedding.to(torch.promote_types(self.embedding.dtype, torch.float32))
        return table if self.embed_norm == "none" else F.normalize(table, dim=-1) * math.sqrt(self.hidden_size)

    def forward(
        self, state: Tensor, t: Tensor, estimate: Tensor | None = None, mask: Tensor | DocumentMask | None = None
    ) -> Tensor:
        """The output (B, L, D), in the state's dtype.

        Args:
            state: (B, L, D) with L at most `length`.
            t: (B,) in [0, 1].
            estimate: (B, L, D), the previous estimate of the clean state; None: there is none. Only read with self_condition.
            mask: as in `DiT.hidden`.

        Raises:
            ValueError: the state has more than `length` positions.
        """
        if state.shape[1] > self.length:
            raise ValueError(f"{state.shape[1]} positions, but the network has {self.length} (model.length): shorten the text")
        dtype = self.positions.dtype
        x = state.to(dtype) + self.positions[: state.shape[1]] + self.time_embedding(t)[:, None].to(dtype)
        if self.estimate is not None and estimate is not None:
            x = x + self.estimate(estimate.to(dtype)).to(dtype)
        x = self.dropout(self.norm(x))
        seen = mask.dense if isinstance(mask, DocumentMask) else mask  # attention with dropout needs a dense mask
        for block in self.blocks:
            x = block(x, seen)
        return (x if self.head is None else self.head(x)).to(state.dtype)


class PlainTimeEmbedding(TimeEmbedding):
    """A time (B,) as D numbers: D cosines and sines, then an MLP of width mlp_ratio * D."""

    def __init__(self, hidden_size: int, mlp_ratio: int, scale: float):
        super().__init__(hidden_size, hidden_size, scale)
        inner = mlp_ratio * hidden_size
        self.mlp = nn.Sequential(nn.Linear(hidden_size, inner), nn.SiLU(), nn.Linear(inner, hidden_size))
