"""Losses over the vocabulary, forward and backward in chunks of tokens.

Each returns a weighted sum. Since its upstream gradient is a single scalar, the gradient is computed in the forward pass, and
logits need neither be kept nor computed again: three vocabulary-sized matrix products per token instead of four. Targets are
constants. B batch, L length, D width, V vocabulary, n tokens of a chunk.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from flm.device import compiled_on_device
from flm.outputs import Output, RawOutput
from flm.posterior import TokenPosterior, chunks, padded, padded_copy, softcapped_logits


def cross_entropy(posterior: TokenPosterior, target: Tensor | Output, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Token cross-entropy -sum_k q_k log p_k.

    Args:
        target: token ids (B, L), or probability vectors q at every position (a soft target).
        weight: (B, L), constant.

    Returns:
        The weighted sum over tokens, a differentiable scalar, and each token's cross-entropy (B, L) in nats, detached.
    """
    bias = _bias(posterior)
    return _CrossEntropy.apply(posterior.hidden, posterior.table, bias, posterior, target, weight, torch.is_grad_enabled())


def squared_error(output: TokenPosterior | RawOutput, target: Output, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance sum_k (output_k - target_k)^2 at every token.

    Args:
        output: a posterior, whose probabilities are compared, or a raw output.
        weight: (B, L), constant.

    Returns:
        The weighted sum over tokens, a differentiable scalar, and each token's squared distance (B, L), detached.
    """
    bias = _bias(output)
    return _SquaredError.apply(output.hidden, output.table, bias, output, target, weight, torch.is_grad_enabled())


def _bias(output: TokenPosterior | RawOutput) -> Tensor:
    assert not getattr(output, "is_truncated", False), "a truncated prediction has no loss"
    return output.bias if output.bias is not None else output.hidden.new_zeros(output.vocab_size)


# (slice of the flattened token axis, its logits (n, V), which may be overwritten, whether the slope is wanted) -> values (n,),
# and their derivative by the logits (n, V), None if not wanted
ValueAndSlope = Callable[[slice, Tensor, bool], tuple[Tensor, Tensor | None]]


def of_logits(posterior: TokenPosterior, value_and_slope: ValueAndSlope, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted sum of any function of each token's logits whose derivative is known.

    Args:
        value_and_slope: of the tempered, softcapped logits.
        weight: (B, L), constant.

    Returns:
        The weighted sum over tokens, a differentiable scalar, and each token's value (B, L), detached.
    """
    bias = _bias(posterior)
    return _OfLogits.apply(posterior.hidden, posterior.table, bias, posterior, value_and_slope, weight, torch.is_grad_enabled())


@functools.cache
def sums_in_float32(device_type: str, dtype: torch.dtype) -> bool:
    """Whether addmm can add products of `dtype` to float32 sums on this device, which is tried once. On a CPU it cannot."""
    small = torch.ones(16, 16, device=device_type, dtype=dtype)
    try:
        found = torch.addmm(small.float(), small, small, out_dtype=torch.float32)
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return found.dtype == torch.float32 and bool((found == 17).all())


class _Gradients:
    """Accumulates the gradients of hidden (N, D), table (V, D) and bias (V,) from slopes d loss / d raw logits (n, V)."""

    def __init__(self, ctx, flat: Tensor, table: Tensor, bias: Tensor, compute_table: Tensor, enabled: bool):
        wants = [need and enabled for need in ctx.needs_input_grad[:3]]
        self.any = any(wants)
        self.table_read = compute_table
        self.accumulator = torch.promote_types(table.dtype, torch.float32)
        self.hidden = torch.empty_like(flat) if wants[0] else None
        self.table = torch.zeros(compute_table.shape, dtype=self.accumulator, device=table.device) if wants[1] else None
        self.bias = torch.zeros(bias.shape, dtype=self.accumulator, device=bias.device) if wants[2] else None

    def add(self, part: slice, slope: Tensor, column_sum: Tensor, h: Tensor) -> None:
        """Adds a chunk: slope (n, rows of the padded table) in the precision of products, and its sum over tokens (V,)."""
        if self.bias is not None:
            self.bias += column_sum
        with torch.autocast(slope.device.type, enabled=False):
            if self.hidden is not None:
                self.hidden[part] = (slope @ self.table_read).to(self.hidden.dtype)
            if self.table is not None:
                if slope.dtype == self.accumulator:
                    self.table.addmm_(slope.T, h)
                elif sums_in_float32(slope.device.type, slope.dtype):
                    self.table = torch.addmm(self.table, slope.T, h, out_dtype=self.accumulator)
                else:
                    self.table += slope.T @ h

    def finish(
        self, ctx, hidden: Tensor, table: Tensor, bias: Tensor, per_token: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Saves the gradients for the backward pass; returns the weighted sum and the values (B, L)."""
        ctx.save_for_backward(self.hidden, None if self.table is None else self.table[: len(table)], self.bias)
        ctx.shape, ctx.dtypes = hidden.shape, (table.dtype, bias.dtype)
        total = (per_token * weight.reshape(-1)).sum()
        per_token = per_token.view(weight.shape)
        ctx.mark_non_differentiable(per_token)
        return total, per_token


class _GradientInForward(torch.autograd.Function):
    """Multiplies the gradients that the forward pass saved by the upstream scalar."""

    @staticmethod
    def backward(ctx, grad_total, _):
        hidden, table, bias = ctx.saved_tensors
        return (
            None if hidden is None else (hidden * grad_total).view(ctx.shape),
            None if table is None else table.mul_(grad_total).to(ctx.dtypes[0]),
            None if bias is None else bias.mul_(grad_total).to(ctx.dtypes[1]),
            *[None] * 4,  # output, target, weight, with_grad
        )


# loss of each token (n,), slope (n, V or rows of the padded table), its sum over tokens (V,)
Piece = tuple[Tensor, Tensor | None, Tensor | None]


@compiled_on_device
def cross_entropy_chunk(
    h: Tensor,
    table: Tensor,
    bias: Tensor,
    softcap: float | None,
    inverse_temperature: float,
    ids: Tensor | None,
    q: Tensor | None,
    offset: Tensor | None,
    weight: Tensor,
    with_slope: bool,
) -> Piece:
    """Cross-entropy of hidden states (n, D) with tokens ids (n,) or else probabilities q (n, V); offset (n, V) or None."""
    logits, squashed = softcapped_logits(h, table, bias, softcap, len(bias), with_slope)
    logits = logits if offset is None else logits.add(offset)
    logits = logits * inverse_temperature if inverse_temperature != 1.0 else logits
    if ids is not None:
        wanted = logits.gather(1, ids[:, None])[:, 0]
    else:
        wanted = torch.linalg.vecdot(q.to(logits.dtype), logits)
    if not with_slope:
        return logits.logsumexp(-1) - wanted, None, None
    # d loss / d logits = weight * (p - q), through temperature and softcap, in place; loss and slope share one exponential
    top = logits.amax(-1, keepdim=True)
    slope = logits.sub_(top).exp_()
    total = slope.sum(-1, keepdim=True)
    per_token = (total.log() + top)[:, 0] - wanted
    scale = (weight * inverse_temperature).to(slope.dtype)[:, None]
    if ids is None:
        slope.div_(total).sub_(q).mul_(scale)
    elif torch.compiler.is_compiling():  # a comparison is fused into the pass over the slopes, a scatter would not be
        is_wanted = torch.arange(slope.shape[1], device=slope.device) == ids[:, None]
        slope = (slope / total - is_wanted.to(slope.dtype)) * scale
    else:
        slope.mul_(scale / total).scatter_add_(1, ids[:, None], -scale)
    if squashed is not None:
        slope.addcmul_(slope, squashed.square_(), value=-1)
    return per_token, padded(slope.to(table.dtype), len(table)), slope.sum(0)


@compiled_on_device
def squared_error_chunk(
    h: Tensor,
    table: Tensor,
    bias: Tensor,
    softcap: float | None,
    temperature: float | None,
    target: Tensor,
    offset: Tensor | None,
    weight: Tensor,
    with_slope: bool,
) -> Piece:
    """Squared distance of softmax(logits / temperature) to target (n, V); of the logits themselves if temperature is None."""
    values, squashed = softcapped_logits(h, table, bias, softcap, len(bias))
    values = values if offset is None else values.add(offset)
    if temperature is not None:
        values = torch.softmax(values / temperature, -1)
    error = values - target
    per_token = torch.linalg.vecdot(error, error)
    if not with_slope:
        return per_token, None, None
    if temperature is not None:
        # through the softmax: 2 p (e - <p, e>)
        slope = error.sub_(torch.linalg.vecdot(values, error)[:, None]).mul_(values).div_(temperature)
    else:
        slope = error
    slope.mul_((2 * weight).to(slope.dtype)[:, None])
    if squashed is not None:
        slope.mul_(squashed.square_().neg_().add_(1.0))
    return per_token, padded(slope.to(table.dtype), len(table)), slope.sum(0)


class _CrossEntropy(_GradientInForward):
    @staticmethod
    def forward(ctx, hidden, table, bias, posterior, target, weight, with_grad):
        ids = target.reshape(-1) if isinstance(target, Tensor) else None

        def piece(part: slice, h: Tensor, read: Tensor, weight: Tensor, with_slope: bool) -> Piece:
            goal = (None, target.chunk(part)) if ids is None else (ids[part], None)
            offset = None if posterior.offset is None else posterior.offset.chunk(part)
            inverse = 1.0 / posterior.temperature
            return cross_entropy_chunk(h, read, bias, posterior.softcap, inverse, *goal, offset, weight, with_slope)

        return _in_chunks(ctx, piece, hidden, table, bias, weight, with_grad)


class _SquaredError(_GradientInForward):
    @staticmethod
    def forward(ctx, hidden, table, bias, output, target, weight, with_grad):
        softcap, temperature, add = None, None, None
        if isinstance(output, TokenPosterior):
            softcap, temperature, add = output.softcap, output.temperature, output.offset

        def piece(part: slice, h: Tensor, read: Tensor, weight: Tensor, with_slope: bool) -> Piece:
            offset = None if add is None else add.chunk(part)
            return squared_error_chunk(h, read, bias, softcap, temperature, target.chunk(part), offset, weight, with_slope)

        return _in_chunks(ctx, piece, hidden, table, bias, weight, with_grad)


def _in_chunks(
    ctx, piece: Callable[..., Piece], hidden: Tensor, table: Tensor, bias: Tensor, weight: Tensor, with_grad: bool
) -> tuple[Tensor, Tensor]:
    flat, flat_weight = hidden.reshape(-1, hidden.shape[-1]), weight.reshape(-1)
    compute_table = padded_copy(flat, table)
    gradients = _Gradients(ctx, flat, table, bias, compute_table, with_grad)
    per_token = torch.empty(flat.shape[0], dtype=gradients.accumulator, device=flat.device)
    for part in chunks(flat.shape[0], table.shape[0], flat.device):
        h = flat[part].to(compute_table.dtype)
        per_token[part], slope, column_sum = piece(part, h, compute_table, flat_weight[part], gradients.any)
        if slope is not None:
            gradients.add(part, slope, column_sum, h)
    return gradients.finish(ctx, hidden, table, bias, per_token, weight)


class _OfLogits(_GradientInForward):
    @staticmethod
    def forward(ctx, hidden, table, bias, posterior, value_and_slope, weight, with_grad):
        def piece(part: slice, h: Tensor, read: Tensor, weight: Tensor, with_slope: bool) -> Piece:
            logits, squashed = softcapped_logits(h, read, bias, posterior.softcap, len(bias))
            logits = logits if posterior.offset is None else logits.add(posterior.offset.chunk(part))
            logits = logits / posterior.temperature if posterior.temperature != 1.0 else logits
            per_token, slope = value_and_slope(part, logits, with_slope)
            if slope is None:
                return per_token, None, None
            slope.mul_((weight / posterior.temperature).to(slope.dtype)[:, None])
            if squashed is not None:
                slope.mul_(squashed.square_().neg_().add_(1.0))
            return per_token, padded(slope.to(read.dtype), len(read)), slope.sum(0)

        return _in_chunks(ctx, piece, hidden, table, bias, weight, with_grad)
