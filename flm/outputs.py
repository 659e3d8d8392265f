"""Outputs other than the posterior of one network: V raw numbers at every position, and weighted sums of outputs.

Like posteriors they are reduced in chunks of tokens. B batch, L length, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from flm.posterior import chunks, compute_copy, softcapped_logits


@dataclass(frozen=True)
class RawOutput:
    """V numbers at every position without softmax, hidden @ table^T + bias, as for a correction of a posterior."""

    hidden: Tensor
    table: Tensor
    bias: Tensor | None = None

    @property
    def vocab_size(self) -> int:
        return self.table.shape[0]

    @property
    def shape(self) -> torch.Size:
        """(B, L)."""
        return self.hidden.shape[:-1]

    def chunk(self, part: slice) -> Tensor:
        """Values (n, V) of one slice of the flattened token axis."""
        hidden = self.hidden.reshape(-1, self.hidden.shape[-1])[part]
        table = compute_copy(hidden, self.table)
        return softcapped_logits(hidden.to(table.dtype), table, self.bias, None)[0]

    def rows(self, index: slice) -> "RawOutput":
        return replace(self, hidden=self.hidden[index])

    @torch.no_grad()
    def expected(self, tables: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Values @ W_k, (B, L, d_k). They are linear, so one (D, d_k) matrix serves the whole batch."""
        with torch.autocast(self.hidden.device.type, enabled=False):
            hidden = self.hidden.to(self.table.dtype)
            views = tuple(hidden @ (self.table.T @ w) for w in tables)
            if self.bias is None:
                return views
            return tuple(view + self.bias @ w for view, w in zip(views, tables, strict=True))


class Output(Protocol):
    """V values at every position, given chunk by chunk. A `TokenPosterior` is one."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def shape(self) -> torch.Size: ...

    def chunk(self, part: slice) -> Tensor: ...

    def rows(self, index: slice) -> "Output": ...

    def expected(self, tables: Sequence[Tensor]) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True)
class Combination:
    """sum_i w_i * output_i over the same tokens. weights[i] is (B,), a weight for each sequence, or a number.

    With posteriors and convex weights it is a mixture, which lies on the simplex too.
    """

    weights: tuple[Tensor | float, ...]
    outputs: tuple[Output, ...]

    @property
    def vocab_size(self) -> int:
        return self.outputs[0].vocab_size

    @property
    def shape(self) -> torch.Size:
        return self.outputs[0].shape

    @torch.no_grad()
    def chunk(self, part: slice) -> Tensor:
        """Values (n, V) of one slice of the flattened token axis."""
        total: Tensor | None = None
        for weight, output in zip(self.weights, self.outputs, strict=True):
            values = output.chunk(part)
            if isinstance(weight, Tensor):
                weight = weight.to(values.dtype).repeat_interleave(self.shape[1])[part, None]
            if total is None:
                total = values.mul_(weight)
            elif isinstance(weight, Tensor):
                total.addcmul_(values, weight)
            else:
                total.add_(values, alpha=weight)
        assert total is not None
        return total

    def rows(self, index: slice) -> "Combination":
        weights = tuple(w[index] if isinstance(w, Tensor) else w for w in self.weights)
        return Combination(weights, tuple(output.rows(index) for output in self.outputs))

    @torch.no_grad()
    def expected(self, tables: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Values @ W_k, (B, L, d_k)."""
        totals: list[Tensor] | None = None
        for weight, output in zip(self.weights, self.outputs, strict=True):
            w = weight[:, None, None] if isinstance(weight, Tensor) else weight
            views = [(w * view).to(view.dtype) for view in output.expected(tables)]
            totals = views if totals is None else [a + b for a, b in zip(totals, views, strict=True)]
        assert totals is not None
        return tuple(totals)

    @torch.no_grad()
    def argmax(self) -> Tensor:
        """Index of the largest value (B, L)."""
        count, device = self.shape.numel(), self.outputs[0].hidden.device
        pieces = [self.chunk(part).argmax(-1) for part in chunks(count, self.vocab_size, device)]
        return torch.cat(pieces).view(self.shape)
