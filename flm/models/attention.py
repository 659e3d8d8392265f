"""Attention, rotary position embedding, masks of documents, and a linear map of neighbours.

B batch, H heads, L positions, Dh width of a head.
"""

import functools
import importlib.metadata
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from flm.posterior import chunks

FLEX_ON = {"cuda"}  # devices on which document masks are blocks; on a CPU flex_attention has no gradients

_forward_mode = False  # set by forward_mode_attention


def in_forward_mode() -> bool:
    """Whether this runs inside `forward_mode_attention`."""
    return _forward_mode


@contextmanager
def forward_mode_attention() -> Iterator[None]:
    """Inside, attention has forward-mode derivatives (torch.func.jvp), which the fused operations lack, and no others.

    Compiled blocks run uncompiled inside: torch.compile cannot trace under torch.func.jvp, and code that it first meets there
    stays uncompiled for the rest of the process.
    """
    global _forward_mode
    before, _forward_mode = _forward_mode, True
    try:
        yield
    finally:
        _forward_mode = before


class DocumentMask:
    """The attention mask of rows of documents: a position sees only its own document, and padding only padding.

    One object serves all networks of a batch. Each form that a kernel takes is made at first use and kept.

    Args:
        documents: (B, L), equal numbers for consecutive positions of one document, -1 on padding.
    """

    def __init__(self, documents: Tensor):
        self.documents = documents
        self._made: dict[str, Tensor | BlockMask] = {}

    def __getitem__(self, rows: slice) -> "DocumentMask":
        return DocumentMask(self.documents[rows])

    @property
    def dense(self) -> Tensor:
        """(B, 1, L, L), True where the row's position may see the column's."""
        if "dense" not in self._made:
            self._made["dense"] = self.documents[:, None, :, None] == self.documents[:, None, None, :]
        return self._made["dense"]

    def for_kernels(self, x: Tensor, head_dim: int, causal: bool) -> "Tensor | BlockMask":
        """The mask of `attention` for a network that reads x: blocks if flex_attention is used, else the dense mask.

        Blocks list the tiles of scores that are needed; others cost nothing. With `causal` they include the triangle.
        """
        if x.device.type not in FLEX_ON or x.dtype == torch.float64 or head_dim < 16 or _forward_mode:
            return self.dense
        kind = "causal" if causal else "blocks"
        if kind not in self._made:
            documents = self.documents

            def seen(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
                together = documents[batch, row] == documents[batch, column]
                return together & (row >= column) if causal else together

            size, length = documents.shape
            self._made[kind] = create_block_mask(seen, size, None, length, length, device=documents.device)
        return self._made[kind]


def document_mask(documents: Tensor | None) -> DocumentMask | None:
    """The mask of documents (B, L); None: rows are whole, and need no mask."""
    return None if documents is None else DocumentMask(documents)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softcap: float | None = None,
    causal: bool = False,
    mask: Tensor | BlockMask | None = None,
) -> Tensor:
    """softmax(scores) v with scores = q k^T / sqrt(Dh), for q, k, v of shape (B, H, L, Dh); same shape out.

    Args:
        softcap: scores become softcap * tanh(scores / softcap), which bounds them; None: scores are not changed.
        causal: position i sees positions 0..i only.
        mask: bool, broadcastable to (B, H, L, L), True where the row's position may see the column's; every row needs a True.
            Or blocks, which must include the triangle of a causal network. None: every position sees every other.

    With blocks, flex_attention is used. Without blocks and softcap torch chooses the kernel (cuDNN or flash attention on CUDA).
    With a softcap it is flash-attn if that is installed (2.6 or newer) and applicable, else flex_attention on CUDA, else the
    formula written out, which holds (B, H, L, L) scores. In forward mode no (B, H, L, L) tensor is held.
    """
    if causal and q.shape[-2] != k.shape[-2]:
        raise ValueError(f"causal attention needs as many queries ({q.shape[-2]}) as keys ({k.shape[-2]}): pass a mask")
    if isinstance(mask, BlockMask):
        return _flexed(q, k, v, None if softcap is None else _capped(softcap, False, None), mask)
    if softcap is None:
        if causal and mask is not None:
            mask, causal = mask & _lower_triangle(q), False
        if _forward_mode:
            return _Differentiated.apply(q, k, v, mask, causal)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    if q.is_cuda and q.dtype != torch.float64 and not _forward_mode:
        if mask is None and q.dtype != torch.float32 and FLASH_CAPS:
            return _flash_attention(q, k, v, softcap, causal)
        return _flexed(q, k, v, _capped(softcap, causal, None if mask is None else mask.expand(*q.shape[:-1], k.shape[-2])))
    if causal:
        mask = _lower_triangle(q) if mask is None else mask & _lower_triangle(q)
    if not _forward_mode:
        return _written_out_attention(q, k, v, softcap, mask)
    pieces = []
    for part in chunks(q.shape[-2], q.shape[:-2].numel() * k.shape[-2], q.device):
        own = mask if mask is None or mask.shape[-2] == 1 else mask[..., part, :]
        pieces.append(_written_out_attention(q[..., part, :], k, v, softcap, own))
    return torch.cat(pieces, dim=-2)


class _Differentiated(torch.autograd.Function):
    """Attention with a forward-mode derivative, made of kernels that only have a reverse-mode one.

    With scores s = c q k^T and p = softmax(s) the derivative along (dq, dk, dv) is, for each query,

        sum_j p_j (ds_j - sum_l p_l ds_l) v_j + sum_j p_j dv_j,        ds_j = c (dq k_j + q dk_j).

    The reverse-mode derivative by the query, for values w and an incoming gradient g, is sum_j p_j (g w_j - sum_l p_l g w_l)
    c k_j. Take keys (k, v), values (k, dk), and the query (q, 0), whose scores are still s. Then with the gradient (dq, q) the
    second half of that derivative is the first sum above. Heads are twice as wide there, and no scores are kept.
    """

    @staticmethod
    def forward(q, k, v, mask, causal):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.causal = inputs
        ctx.save_for_forward(*tensors)

    @staticmethod
    def jvp(ctx, dq, dk, dv, _, __):
        q, k, v, mask = ctx.saved_tensors
        read, kept = torch.cat((k, v), -1), torch.cat((k, dk), -1)

        def widened(queries: Tensor) -> Tensor:
            options = {"attn_mask": mask, "is_causal": ctx.causal, "scale": q.shape[-1] ** -0.5}
            return F.scaled_dot_product_attention(queries, read, kept, **options)

        _, reverse = torch.func.vjp(widened, torch.cat((q, torch.zeros_like(q)), -1))
        (moved,) = reverse(torch.cat((dq, q), -1))
        return moved[..., q.shape[-1] :] + F.scaled_dot_product_attention(q, k, dv, attn_mask=mask, is_causal=ctx.causal)


def _written_out_attention(q: Tensor, k: Tensor, v: Tensor, softcap: float, mask: Tensor | None) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)  # fused kernels accumulate in fp32 too
    with torch.autocast(q.device.type, enabled=False):
        scores = q.to(wide) @ k.to(wide).transpose(-2, -1) / math.sqrt(q.shape[-1])
        scores = softcap * torch.tanh(scores / softcap)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return (scores.softmax(-1) @ v.to(wide)).to(v.dtype)


def _lower_triangle(q: Tensor) -> Tensor:
    return torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).tril()


def _flash_supports_softcap() -> bool:
    try:
        version = importlib.metadata.version("flash-attn")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in version.split(".")[:2]) >= (2, 6)


FLASH_CAPS = _flash_supports_softcap()  # once at import: code that torch.compile traces cannot look for packages


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, softcap: float, causal: bool) -> Tensor:
    from flash_attn import flash_attn_func

    # flash-attn wants (B, L, H, Dh)
    out = flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=causal, softcap=softcap)
    return out.transpose(1, 2)


def _flexed(
    q: Tensor, k: Tensor, v: Tensor, score_mod: Callable[..., Tensor] | None, blocks: BlockMask | None = None
) -> Tensor:
    run = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
    # contiguous: compiled for a CPU it misreads views of one tensor of q, k and v (torch 2.13)
    return run(*(x.contiguous() for x in (q, k, v)), score_mod=score_mod, block_mask=blocks)


@functools.cache
def _compiled_flex_attention() -> Callable[..., Any]:
    return torch.compile(flex_attention)  # uncompiled it would hold all scores


def _capped(softcap: float, causal: bool, mask: Tensor | None) -> Callable[..., Tensor]:
    """The score_mod of flex_attention that caps and masks; `mask` has the full shape (B, H, L, L)."""

    # kept as text: the tracer makes a variable of a process's second number here, which flex_attention refuses
    text = str(softcap)

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        score = float(text) * torch.tanh(score / float(text))
        if causal:
            score = torch.where(row >= column, score, -math.inf)
        if mask is not None:
            score = torch.where(mask[batch, head, row, column], score, -math.inf)
        return score

    return score_mod


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
    """Adds to each position a linear map of every position up to `reach` away, with one matrix for each distance.

    Attention learns late which tokens are neighbours, since its rotary features carry no positions at the start. But
    neighbours hold most of the information in short contexts, and here a network reads them from the first step.
    """

    def __init__(self, width: int, reach: int):
        super().__init__()
        self.reach = reach
        bound = (width * (2 * reach + 1)) ** -0.5
        self.weight = nn.Parameter(torch.empty(2 * reach + 1, width, width).uniform_(-bound, bound))

    def forward(self, x: Tensor, mask: Tensor | DocumentMask | None) -> Tensor:
        """x (B, L, D) with the maps of the neighbours that a position may see; mask as in `attention`, one for all heads."""
        length, total = x.shape[1], x
        mask = mask.dense if isinstance(mask, DocumentMask) else mask
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
