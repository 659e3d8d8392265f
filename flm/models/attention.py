"""Attention, and the rotary position embedding it is fed with. B batch, H heads, L positions, Dh width of a head."""

import functools
import importlib.metadata
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_written_out = False  # set by forward_mode_attention


def in_forward_mode() -> bool:
    """Whether this runs inside `forward_mode_attention`."""
    return _written_out


@contextmanager
def forward_mode_attention() -> Iterator[None]:
    """Inside, attention uses operations that have forward-mode derivatives (torch.func.jvp); the fused ones have none.

    Compiled blocks run uncompiled inside: torch.compile cannot trace under torch.func.jvp, and code that it has once met
    there stays eager for the rest of the process.
    """
    global _written_out
    before, _written_out = _written_out, True
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _written_out = before


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softcap: float | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """softmax(scores) v with scores = q k^T / sqrt(Dh), for q, k, v of shape (B, H, L, Dh); same shape out.

    Args:
        softcap: scores become softcap * tanh(scores / softcap), a bound on their size; None leaves them as they are.
        causal: position i sees positions 0..i only.
        mask: bool, broadcastable to (B, H, L, L), True where the row's position may see the column's. Every row needs
            a True. None: all may.

    With a softcap: flash-attn where it is installed (2.6 or newer) and applies, else flex_attention on CUDA, else
    written out in full, which holds (B, H, L, L) scores.
    """
    if causal and q.shape[-2] != k.shape[-2]:
        raise ValueError(f"causal attention needs as many queries ({q.shape[-2]}) as keys ({k.shape[-2]}): pass a mask")
    if softcap is None:
        if causal and mask is not None:
            mask, causal = mask & _lower_triangle(q), False
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    if q.is_cuda and q.dtype != torch.float64 and not _written_out:
        if mask is None and q.dtype != torch.float32 and _flash_supports_softcap():
            return _flash_attention(q, k, v, softcap, causal)
        score_mod = _capped(softcap, causal, None if mask is None else mask.expand(*q.shape[:-1], k.shape[-2]))
        return _compiled_flex_attention()(q, k, v, score_mod=score_mod)
    return _written_out_attention(q, k, v, softcap, causal, mask)


def _written_out_attention(q: Tensor, k: Tensor, v: Tensor, softcap: float, causal: bool, mask: Tensor | None) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)  # as the fused kernels, which accumulate in fp32
    with torch.autocast(q.device.type, enabled=False):
        scores = q.to(wide) @ k.to(wide).transpose(-2, -1) / math.sqrt(q.shape[-1])
        scores = softcap * torch.tanh(scores / softcap)
        if causal:
            scores = scores.masked_fill(~_lower_triangle(q), -math.inf)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return (scores.softmax(-1) @ v.to(wide)).to(v.dtype)


def _lower_triangle(q: Tensor) -> Tensor:
    return torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).tril()


@torch.compiler.assume_constant_result
def _flash_supports_softcap() -> bool:
    try:
        version = importlib.metadata.version("flash-attn")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in version.split(".")[:2]) >= (2, 6)


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, softcap: float, causal: bool) -> Tensor:
    from flash_attn import flash_attn_func

    # flash-attn wants (B, L, H, Dh)
    out = flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=causal, softcap=softcap)
    return out.transpose(1, 2)


@functools.cache
def _compiled_flex_attention() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)  # uncompiled it holds the full scores


def _capped(softcap: float, causal: bool, mask: Tensor | None) -> Callable[..., Tensor]:
    """The score_mod of flex_attention that caps and masks; `mask` has the full shape (B, H, L, L)."""

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        score = softcap * torch.tanh(score / softcap)
        if causal:
            score = torch.where(row >= column, score, -math.inf)
        if mask is not None:
            score = torch.where(mask[batch, head, row, column], score, -math.inf)
        return score

    return score_mod


def document_mask(documents: Tensor | None) -> Tensor | None:
    """The mask (B, 1, L, L) under which a position sees its own document (B, L) alone, and padding (-1) only padding.

    None where rows are not divided.
    """
    return None if documents is None else documents[:, None, :, None] == documents[:, None, None, :]


def rotary_table(positions: Tensor, head_dim: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine (..., L, Dh/2) fp32 of the angles position * base^(-2j/Dh), for positions of shape (..., L).

    arXiv 2104.09864. The angles are formed in float64: at position 1000 an fp32 angle is off by up to 6e-5.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim
    angle = positions.to(torch.float64)[..., None] * base**-exponent
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (j, j + Dh/2) of x (B, H, L, Dh) by its angle; in fp32 at least, returned in x's dtype."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Neighbours(nn.Module):
    """Adds to each position a linear map of every position up to `reach` away, one map a distance.

    Attention finds who stands where only after a while: it has to build positions out of rotations of features that carry none
    at the start. What stands next to a position is most of what short contexts say, and this hands it over at once.
    """

    def __init__(self, width: int, reach: int):
        super().__init__()
        self.reach = reach
        bound = (width * (2 * reach + 1)) ** -0.5
        self.weight = nn.Parameter(torch.empty(2 * reach + 1, width, width).uniform_(-bound, bound))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, L, D), and a mask as `attention` takes it, the same for all heads: who may not be seen is left out."""
        length, total = x.shape[1], x
        for index, weight in enumerate(self.weight):
            distance = index - self.reach
            if abs(distance) >= length:
                continue
            here, there = (
                slice(max(0, -distance), length - max(0, distance)),
                slice(max(0, distance), length + min(0, distance)),
            )
            moved = F.linear(x[:, there], weight)
            if mask is not None:
                seen = mask.expand(*mask.shape[:-2], length, length).diagonal(distance, -2, -1)
                moved = moved * seen[:, 0, :, None].to(moved.dtype)
            total = total + F.pad(moved, (0, 0, here.start, length - here.stop))
        return total
