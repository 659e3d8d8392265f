"""Attention of the parameter-golf transformer: grouped queries, partial rotary positions, and three optional additions.

B batch, L positions, D width, H query heads of width Dh, K key-value heads, each shared by H / K query heads,
r dimensions of a head that are rotated.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flm.golf.parts import linear, rms_norm
from flm.models.attention import attention, rotate
from flm.models.causal import KeyValues, triangle_after


def stretched_base(base: float, rotary_dims: int, length: int, native_length: int | None) -> float:
    """The rotary base for sequences of `length`, by the NTK rule: base * (length / native_length)^(r / (r - 2)).

    With it the slowest angle turns over `length` as far as it did over native_length with the old base. The base stays as it
    is if `length` is at most native_length, if native_length is None, and if rotary_dims, r, is 2.
    """
    if native_length is None or length <= native_length or rotary_dims <= 2:
        return base
    return base * (length / native_length) ** (rotary_dims / (rotary_dims - 2))


def partly_rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first r dimensions of x (B, H, L, Dh) by the angles of the position; cos and sin are (L, r / 2)."""
    turning = 2 * cos.shape[-1]
    return torch.cat((rotate(x[..., :turning], cos, sin), x[..., turning:]), dim=-1)


def without_own(mixed: Tensor, values: Tensor) -> Tensor:
    """Exclusive self attention (arXiv 2603.09078): the part of `mixed` that is orthogonal to the position's own value.

    It is y - (y . n) n with n = v / |v|. Here y is `mixed` (B, H, L, Dh), the output of attention, and v is `values`
    (B, H, L, Dh), for each query head the value of the same position in its key-value head.
    """
    wide = torch.promote_types(mixed.dtype, torch.float32)
    direction = F.normalize(values.to(wide), dim=-1)
    y = mixed.to(wide)
    return (y - (y * direction).sum(-1, keepdim=True) * direction).to(mixed.dtype)


class GolfAttention(nn.Module):
    """Causal attention. Queries and keys are RMS-normalised before they are rotated, and queries have a gain per head.

    Args:
        dim: D.
        num_heads: H.
        queries_per_key: H / K; query head h reads key-value head floor(h / queries_per_key).
        query_gain: initial value of the learned gains.
        exclusive: exclusive self attention, see `without_own`.
        value_residual: values are l0 * (those of block 0) + l1 * (own); l0 and l1 are learned from 0.5 (arXiv 2410.17897).
        gated: multiplies each head's output by sigmoid(w . x + b), where x is the input of the layer. w is learned from 0 and
            b from 4 (arXiv 2505.06708).
        first: whether this is block 0, where l0 and l1 exist, but are neither used nor trained.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        queries_per_key: int,
        query_gain: float,
        exclusive: bool,
        value_residual: bool,
        gated: bool,
        first: bool = False,
    ):
        super().__init__()
        self.num_heads, self.queries_per_key, self.exclusive = num_heads, queries_per_key, exclusive
        narrow = dim // queries_per_key
        self.query, self.key, self.value = linear(dim, dim, 1.0), linear(dim, narrow, 1.0), linear(dim, narrow, 1.0)
        self.out = linear(dim, dim, 0.0)
        self.query_gain = nn.Parameter(torch.full((num_heads,), query_gain))
        self.value_mix = nn.Parameter(torch.full((2,), 0.5), requires_grad=not first) if value_residual else None
        self.gate = nn.Linear(dim, num_heads) if gated else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.constant_(self.gate.bias, 4.0)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, first_values: Tensor | None, cache: KeyValues | None
    ) -> tuple[Tensor, Tensor]:
        """The output (B, L, D), and the layer's own values (B, K, L, Dh), before those of block 0 are mixed in.

        Args:
            x: (B, L, D).
            cos, sin: rotary tables (L, r / 2).
            first_values: the values that block 0 returned; None in block 0.
            cache: keys and values of earlier positions, to which those of x are appended; None: x is the whole sequence.
        """
        dh = x.shape[-1] // self.num_heads
        q, k, own = (layer(x).unflatten(-1, (-1, dh)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        q = partly_rotated(rms_norm(q), cos, sin) * self.query_gain.to(q.dtype)[:, None, None]
        k, v = partly_rotated(rms_norm(k), cos, sin), own
        if self.value_mix is not None and first_values is not None:
            old, new = self.value_mix.to(v.dtype)
            v = old * first_values + new * v
        causal, mask, keys, values = True, None, k, v
        if cache is not None:
            keys, values = cache.extend(k, v)
            causal, mask = triangle_after(q.shape[-2], keys.shape[-2], q.device)
        y = attention(q, self._per_query(keys), self._per_query(values), causal=causal, mask=mask)
        if self.exclusive:
            y = without_own(y, self._per_query(v))
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(x)).transpose(1, 2)[..., None].to(y.dtype)
        return self.out(y.transpose(1, 2).flatten(2)), own

    def _per_query(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.queries_per_key, dim=1)
