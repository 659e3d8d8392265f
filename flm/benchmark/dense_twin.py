"""Twins of algorithms that the tests hold them to and the benchmark measures them beside. Never used for training.

`dense` is FLM the textbook way, with (B, L, V) one-hot vectors (int64, as torch makes them), noise, states and logits;
`dense_indexed` the same without a one-hot vector: what V-free code is worth is the distance from it, not from the former.
`all_positions` is a masked diffusion that scores the tokens it can see, too, as published code does.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Batch
from flm.algos.flm import FLM
from flm.algos.mdlm import MDLM
from flm.draws import Draws
from flm.paths.evidence import Held
from flm.paths.masking import random_masks
from flm.posterior import TokenPosterior
from flm.samplers.canvas import Canvas
from flm.vocabulary_losses import cross_entropy


def dense_state(tokens: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t = (1 - t) noise + t onehot, (B, L, V); t (B,), noise (B, L, V)."""
    one_hot = nn.functional.one_hot(tokens, noise.shape[-1]).to(noise.dtype)
    return (1 - t)[:, None, None] * noise + t[:, None, None] * one_hot


def dense_log_probabilities(posterior: TokenPosterior) -> Tensor:
    """(B, L, V), differentiable."""
    logits = posterior.hidden @ posterior.table.T
    if posterior.bias is not None:
        logits = logits + posterior.bias
    if posterior.softcap is not None:
        logits = posterior.softcap * torch.tanh(logits / posterior.softcap)
    if posterior.offset is not None:
        logits = logits + posterior.offset.chunk(slice(0, posterior.shape.numel())).view_as(logits)
    return torch.log_softmax(logits / posterior.temperature, -1)


def dense_prediction(backbone: nn.Module, x: Tensor, t: Tensor, tau: Tensor, log_prior: Tensor | None = None) -> Tensor:
    """log D (B, L, V) of x (B, L, V) at t (B,); log_prior (V,) of a network that reads evidence, None: it reads x W."""
    if log_prior is None:
        return dense_log_probabilities(backbone(x @ backbone.input_table, tau))
    evidence = log_prior + x * (t / (1 - t).square())[:, None, None]
    posterior = backbone(torch.softmax(evidence, -1) @ backbone.input_table, tau)
    return dense_log_probabilities(replace(posterior, offset=Held(evidence.flatten(0, 1))))


def dense_loss(
    backbone: nn.Module,
    tokens: Tensor,
    weight: Tensor,
    t: Tensor,
    tau: Tensor,
    noise: Tensor,
    log_prior: Tensor | None = None,
) -> Tensor:
    """The FLM loss: weighted cross-entropy of the prediction from x_t, everything dense."""
    log_p = dense_prediction(backbone, dense_state(tokens, t, noise), t, tau, log_prior)
    one_hot = nn.functional.one_hot(tokens, noise.shape[-1]).to(noise.dtype)
    return -((one_hot * log_p).sum(-1) * weight).sum()


@torch.no_grad()
def dense_euler(
    backbone: nn.Module, clock: nn.Module, canvas: Canvas, steps: int, noise: Tensor, log_prior: Tensor | None = None
) -> Tensor:
    """Euler sampling of FLM with the (B, L, V) state kept; tokens (B, L)."""
    given = nn.functional.one_hot(canvas.tokens, noise.shape[-1]).to(noise.dtype)
    grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=noise.device)
    times = clock.time(grid).tolist()
    z = noise
    for i in range(steps):
        tau, t = (torch.full((len(noise),), at, dtype=torch.float32, device=noise.device) for at in (grid[i].item(), times[i]))
        p = dense_prediction(backbone, z, t, tau, log_prior).exp()
        p = torch.where(canvas.editable[..., None], p, given)
        z = z + (times[i + 1] - times[i]) * (p - z) / (1 - times[i])
    return p.argmax(-1)


def indexed_state(tokens: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """As `dense_state`, in the memory of the noise."""
    return noise.mul_((1 - t)[:, None, None]).scatter_add_(-1, tokens[..., None], t[:, None, None].expand(*tokens.shape, 1))


def indexed_loss(
    backbone: nn.Module,
    tokens: Tensor,
    weight: Tensor,
    t: Tensor,
    tau: Tensor,
    noise: Tensor,
    log_prior: Tensor | None = None,
) -> Tensor:
    """As `dense_loss`; the noise is overwritten."""
    log_p = dense_prediction(backbone, indexed_state(tokens, t, noise), t, tau, log_prior)
    return -(log_p.gather(-1, tokens[..., None])[..., 0] * weight).sum()


@torch.no_grad()
def indexed_euler(
    backbone: nn.Module, clock: nn.Module, canvas: Canvas, steps: int, noise: Tensor, log_prior: Tensor | None = None
) -> Tensor:
    """As `dense_euler`, with one state; the noise is overwritten."""
    grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=noise.device)
    times = clock.time(grid).tolist()
    ids, is_given = canvas.tokens[..., None], ~canvas.editable[..., None]
    z = noise
    for i in range(steps):
        tau, t = (torch.full((len(noise),), at, dtype=torch.float32, device=noise.device) for at in (grid[i].item(), times[i]))
        p = dense_prediction(backbone, z, t, tau, log_prior).exp_().masked_fill_(is_given, 0)
        p = p.scatter_add_(-1, ids, is_given.to(p.dtype))
        share = (times[i + 1] - times[i]) / (1 - times[i])
        z = z.mul_(1 - share).add_(p, alpha=share)
    return p.argmax(-1)


@dataclass(frozen=True)
class Twin:
    """Another way of an algorithm.

    Attributes:
        loss: of training.
        sample: from noise, in some steps; None: as the algorithm does.
    """

    loss: Callable[[Any, Batch, Draws], Tensor]
    sample: Callable[[Any, Canvas, int, torch.Generator], Tensor] | None = None


def _flm(loss: Callable[..., Tensor], euler: Callable[..., Tensor]) -> Twin:
    def of_batch(algorithm: FLM, batch: Batch, draws: Draws) -> Tensor:
        tau = draws.stratified(len(batch.tokens))
        t = algorithm.clock.time(tau).float()
        noise = draws.normal(*batch.tokens.shape, algorithm.vocab_size)
        weight = batch.weight / batch.weight.sum()
        return loss(algorithm.backbone, batch.tokens, weight, t, tau.float(), noise, _log_prior(algorithm))

    def sample(algorithm: FLM, canvas: Canvas, steps: int, generator: torch.Generator) -> Tensor:
        shape = (*canvas.tokens.shape, algorithm.vocab_size)
        noise = torch.randn(shape, generator=generator, device=canvas.tokens.device)
        return euler(algorithm.backbone, algorithm.clock, canvas, steps, noise, _log_prior(algorithm))

    return Twin(of_batch, sample)


def _log_prior(algorithm: FLM) -> Tensor | None:
    return algorithm.log_prior if algorithm.reads == "evidence" else None


def all_positions_loss(algorithm: MDLM, batch: Batch, draws: Draws) -> Tensor:
    """As MDLM's own, of the same masks: what it sees is scored with a weight of 0."""
    masked, scale = random_masks(batch.weight > 0, draws.stratified(len(batch.tokens)), draws.rows)
    posterior = algorithm.denoiser()(batch.tokens.masked_fill(masked, algorithm.source.mask_id), documents=batch.documents)
    total, _ = cross_entropy(posterior, batch.tokens, batch.weight * masked * scale[:, None].to(batch.weight))
    return total / batch.weight.sum()


# by algorithm and by what is put behind its name, with an underscore
TWINS: dict[type[Algorithm], dict[str, Twin]] = {
    FLM: {"dense": _flm(dense_loss, dense_euler), "dense_indexed": _flm(indexed_loss, indexed_euler)},
    MDLM: {"all_positions": Twin(all_positions_loss)},
}
