"""Measures of an embedding flow on held-out text: a likelihood bound in bits per byte, and a denoising curve.

The mean of the curve in bits per byte, `denoising_ce_bpb`, was once published as a variational number. It is not one: another
scale of the embeddings or another grid can lower it, and the velocity v = 0 may score better than a trained model. Therefore
both measures are also reported for v = 0. B batch, L length, T times.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from flm.algos.algorithm import Batch, Bound
from flm.data.byte_table import ByteTable
from flm.draws import Draws
from flm.golf.flow_lm import FlowLM
from flm.likelihood.bits_per_byte import bits_per_byte

GRIDS: dict[str, Callable[[int], Tensor]] = {
    "inclusive": lambda points: torch.linspace(0, 1, points, dtype=torch.float64),  # as published
    "midpoint": lambda points: (torch.arange(points, dtype=torch.float64) + 0.5) / points,
}


def target_bytes(tokens: Tensor, weight: Tensor, table: ByteTable, bos_id: int) -> int:
    """Bytes of the tokens (B, L) whose weight (B, L) is above 0.

    The bytes of a token depend on the token before it, which is BOS for the first of a row.
    """
    previous = torch.cat((torch.full_like(tokens[:, :1], bos_id), tokens[:, :-1]), 1)
    return int(table.bytes(tokens, previous)[weight > 0].sum())


@torch.no_grad()
def denoising_report(
    algorithm: FlowLM,
    batches: Iterable[Batch],
    table: ByteTable,
    bos_id: int,
    times: Tensor,
    seed: int,
    on_batch: Callable[[], Any] | None = None,
) -> dict[str, Any]:
    """Cross-entropy of the denoised state at each of `times` (T,), and its mean over them, for the model and for v = 0.

    The curves are in nats per target token, the means in bits per byte of the target tokens.

    Raises:
        ValueError: no token is a target.
    """
    device = next(algorithm.parameters()).device
    table = table.to(device)
    sums = torch.zeros(2, len(times), dtype=torch.float64)
    num_tokens = num_bytes = 0
    for index, batch in enumerate(batches):
        batch = batch.to(device)
        weight = algorithm.target_weight(batch)
        num_tokens += int(weight.sum())
        num_bytes += target_bytes(batch.tokens, weight, table, bos_id)
        curves = algorithm.denoising_curve(batch, times, Draws(seed, index, device=device))
        sums += torch.stack([curve.sum(1).cpu() for curve in curves])
        if on_batch is not None:
            on_batch()
    _check(num_tokens)
    model, control = sums / num_tokens
    return {
        "denoising_ce_bpb": bits_per_byte(model.mean().item(), num_tokens, num_bytes),
        "zero_velocity_denoising_ce_bpb": bits_per_byte(control.mean().item(), num_tokens, num_bytes),
        "times": times.tolist(),
        "ce_nats_per_token": model.tolist(),
        "zero_velocity_ce_nats_per_token": control.tolist(),
        "tokens": num_tokens,
        "bytes": num_bytes,
    }


@torch.no_grad()
def bound_report(
    algorithm: FlowLM,
    batches: Sequence[Batch],
    table: ByteTable,
    bos_id: int,
    ends: Sequence[float],
    draws_per_batch: int,
    seed: int,
    on_draw: Callable[[], Any] | None = None,
) -> list[dict[str, Any]]:
    """The bound on -log p(targets | sources), one row for each end t1 of the path, with its two parts and the bound of v = 0.

    `standard_error_nats`, per token, is the error from the draws of times and noise on this text. It does not include the
    choice of the text, and is None with one draw.

    Args:
        ends: values of t1, in (0, 1).
        draws_per_batch: draws of times and noise for each batch.
        on_draw: called after each draw.

    Raises:
        ValueError: no token is a target.
    """
    device = next(algorithm.parameters()).device
    table = table.to(device)
    rows = []
    for end in ends:
        parts, control, variance, num_tokens, num_bytes = torch.zeros(2, dtype=torch.float64), 0.0, 0.0, 0, 0
        for index, batch in enumerate(batches):
            batch = batch.to(device)
            weight = algorithm.target_weight(batch)
            num_tokens += int(weight.sum())
            num_bytes += target_bytes(batch.tokens, weight, table, bos_id)
            found: list[Bound] = []
            for draw in range(draws_per_batch):
                draws = Draws(seed, index * draws_per_batch + draw, device=device)
                found.append(algorithm.conditional_bound(batch, draws, end))
                if on_draw is not None:
                    on_draw()
            nats = torch.stack([bound.nats.cpu() for bound in found])  # (draws, B)
            variance += (nats.var(0).sum().item() if len(found) > 1 else 0.0) / len(found)
            named = [torch.stack([bound.parts[name].cpu() for bound in found]) for name in ("diffusion", "reconstruction")]
            parts += torch.stack([part.mean(0).sum() for part in named])
            control += algorithm.zero_velocity_bound(batch, Draws(seed, index, device=device), end).nats.sum().item()
        _check(num_tokens)
        diffusion, reconstruction = (parts / num_tokens).tolist()
        rows.append(
            {
                "t1": end,
                "nats_per_token": diffusion + reconstruction,
                "bits_per_byte": bits_per_byte(diffusion + reconstruction, num_tokens, num_bytes),
                "standard_error_nats": variance**0.5 / num_tokens if draws_per_batch > 1 else None,
                "diffusion_nats_per_token": diffusion,
                "reconstruction_nats_per_token": reconstruction,
                "zero_velocity_bits_per_byte": bits_per_byte(control / num_tokens, num_tokens, num_bytes),
            }
        )
    return rows


@torch.no_grad()
def autoregressive_report(
    algorithm: FlowLM, beside: Any, batches: Iterable[Batch], table: ByteTable, bos_id: int
) -> dict[str, Any]:
    """The exact likelihood of the same targets given the same sources, by a model that reads from left to right.

    Args:
        algorithm: the embedding flow, which says what the targets are.
        beside: the other model, whose nll(tokens (B, L)) gives nats (B, L). It has the same tokenizer.

    Raises:
        ValueError: no token is a target.
    """
    device = next(beside.parameters()).device
    table, nats, num_tokens, num_bytes = table.to(device), 0.0, 0, 0
    for batch in batches:
        batch = batch.to(device)
        weight = algorithm.target_weight(batch)
        nats += (beside.nll(batch.tokens).double() * (weight > 0)).sum().item()
        num_tokens += int((weight > 0).sum())
        num_bytes += target_bytes(batch.tokens, weight, table, bos_id)
    _check(num_tokens)
    mean = nats / num_tokens
    return {"nats_per_token": mean, "bits_per_byte": bits_per_byte(mean, num_tokens, num_bytes), "tokens": num_tokens}


def _check(num_tokens: int) -> None:
    if not num_tokens:
        raise ValueError("nothing to score: no held-out block has a target (algo.source_fraction, data.layout)")
