"""Losses over the vocabulary, forward and backward in chunks of tokens.

Both return a weighted sum whose gradient is formed in the forward pass: its only upstream gradient is one scalar, so logits
need not be kept or computed again, three vocabulary-sized matrix products a token instead of four. Targets are constants.

B batch, L length, D width, V vocabulary.
"""

import torch
from torch import Tensor

from flm.posterior import Output, RawOutput, TokenPosterior, chunks, compute_copy, softcapped_logits


def cross_entropy(posterior: TokenPosterior, target: Tensor | Output, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Token cross-entropy -sum_k q_k log p_k.

    Args:
        target: token ids (B, L), or what gives a probability vector q at every position (a soft target).
        weight: (B, L), constant; usually 1 / number of tokens that count.

    Returns:
        The weighted sum over tokens, a differentiable scalar, and each token's cross-entropy (B, L) in nats, detached.
    """
    bias = posterior.bias if posterior.bias is not None else posterior.hidden.new_zeros(posterior.vocab_size)
    return _CrossEntropy.apply(
        posterior.hidden, posterior.table, bias, posterior, target, weight, torch.is_grad_enabled()
    )


def squared_error(output: TokenPosterior | RawOutput, target: Output, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance sum_k (output_k - target_k)^2 at every token.

    Args:
        output: a posterior (its probabilities are compared) or a raw output.
        weight: (B, L), constant.

    Returns:
        The weighted sum over tokens, a differentiable scalar, and each token's squared distance (B, L), detached.
    """
    bias = output.bias if output.bias is not None else output.hidden.new_zeros(output.vocab_size)
    return _SquaredError.apply(output.hidden, output.table, bias, output, target, weight, torch.is_grad_enabled())


class _Gradients:
    """Accumulates the gradients of hidden (N, D), table (V, D) and bias (V,) from slopes d loss / d raw logits (n, V)."""

    def __init__(self, ctx, flat: Tensor, table: Tensor, bias: Tensor, compute_table: Tensor, enabled: bool):
        wants = [need and enabled for need in ctx.needs_input_grad[:3]]
        self.any = any(wants)
        self.table_read = compute_table
        self.accumulator = torch.promote_types(table.dtype, torch.float32)
        self.hidden = torch.empty_like(flat) if wants[0] else None
        self.table = torch.zeros(table.shape, dtype=self.accumulator, device=table.device) if wants[1] else None
        self.bias = torch.zeros(bias.shape, dtype=self.accumulator, device=bias.device) if wants[2] else None

    def add(self, part: slice, slope: Tensor, h: Tensor) -> None:
        if self.bias is not None:
            self.bias += slope.sum(0)
        slope = slope.to(self.table_read.dtype)
        with torch.autocast(slope.device.type, enabled=False):
            if self.hidden is not None:
                self.hidden[part] = (slope @ self.table_read).to(self.hidden.dtype)
            if self.table is not None:
                if slope.dtype == self.accumulator:
                    self.table.addmm_(slope.T, h)
                else:
                    self.table += slope.T @ h

    def finish(
        self, ctx, hidden: Tensor, table: Tensor, bias: Tensor, per_token: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keeps the gradients for the backward pass; what the forward pass returns: weighted sum and values (B, L)."""
        ctx.save_for_backward(self.hidden, self.table, self.bias)
        ctx.shape, ctx.dtypes = hidden.shape, (table.dtype, bias.dtype)
        total = (per_token * weight.reshape(-1)).sum()
        per_token = per_token.view(weight.shape)
        ctx.mark_non_differentiable(per_token)
        return total, per_token


class _GradientInForward(torch.autograd.Function):
    """Scales the gradients that the forward pass left by the one upstream number."""

    @staticmethod
    def backward(ctx, grad_total, _):
        hidden, table, bias = ctx.saved_tensors
        return (
            None if hidden is None else (hidden * grad_total).view(ctx.shape),
            None if table is None else table.mul_(grad_total).to(ctx.dtypes[0]),
            None if bias is None else bias.mul_(grad_total).to(ctx.dtypes[1]),
            *[None] * 4,  # output, target, weight, with_grad
        )


class _CrossEntropy(_GradientInForward):
    @staticmethod
    def forward(ctx, hidden, table, bias, posterior, target, weight, with_grad):
        flat, flat_weight = hidden.reshape(-1, hidden.shape[-1]), weight.reshape(-1)
        ids = target.reshape(-1) if isinstance(target, Tensor) else None
        compute_table, _ = compute_copy(flat, table, None)
        gradients = _Gradients(ctx, flat, table, bias, compute_table, with_grad)
        inverse_temperature = 1.0 / posterior.temperature

        per_token = torch.empty(flat.shape[0], dtype=gradients.accumulator, device=flat.device)
        for part in chunks(flat.shape[0], table.shape[0], flat.device):
            h = flat[part].to(compute_table.dtype)
            logits, squashed = softcapped_logits(h, compute_table, bias, posterior.softcap)
            logits = logits * inverse_temperature if inverse_temperature != 1.0 else logits
            log_total = logits.logsumexp(-1)
            if ids is not None:
                index = ids[part, None]
                per_token[part] = log_total - logits.gather(1, index)[:, 0]
            else:
                q = target.chunk(part)
                per_token[part] = log_total - torch.linalg.vecdot(q.to(logits.dtype), logits)
            if not gradients.any:
                continue
            # d loss / d logits = weight * (p - q), carried through temperature and softcap in place
            slope = logits.sub_(log_total[:, None]).exp_()
            if ids is not None:
                slope.scatter_add_(1, index, slope.new_full((), -1.0).expand(index.shape))
            else:
                slope.sub_(q)
            slope.mul_((flat_weight[part] * inverse_temperature).to(slope.dtype)[:, None])
            if squashed is not None:
                slope.mul_(squashed.square_().neg_().add_(1.0))
            gradients.add(part, slope, h)

        return gradients.finish(ctx, hidden, table, bias, per_token, weight)


class _SquaredError(_GradientInForward):
    @staticmethod
    def forward(ctx, hidden, table, bias, output, target, weight, with_grad):
        flat, flat_weight = hidden.reshape(-1, hidden.shape[-1]), weight.reshape(-1)
        compute_table, _ = compute_copy(flat, table, None)
        gradients = _Gradients(ctx, flat, table, bias, compute_table, with_grad)
        is_posterior = isinstance(output, TokenPosterior)

        per_token = torch.empty(flat.shape[0], dtype=gradients.accumulator, device=flat.device)
        for part in chunks(flat.shape[0], table.shape[0], flat.device):
            h = flat[part].to(compute_table.dtype)
            values, squashed = softcapped_logits(h, compute_table, bias, output.softcap if is_posterior else None)
            if is_posterior:
                values = torch.softmax(values / output.temperature, -1)
            error = values - target.chunk(part)
            per_token[part] = torch.linalg.vecdot(error, error)
            if not gradients.any:
                continue
            if is_posterior:
                # through the softmax: 2 p (e - <p, e>)
                slope = error.sub_(torch.linalg.vecdot(values, error)[:, None]).mul_(values).div_(output.temperature)
            else:
                slope = error
            slope.mul_((2 * flat_weight[part]).to(slope.dtype)[:, None])
            if squashed is not None:
                slope.mul_(squashed.square_().neg_().add_(1.0))
            gradients.add(part, slope, h)

        return gradients.finish(ctx, hidden, table, bias, per_token, weight)
