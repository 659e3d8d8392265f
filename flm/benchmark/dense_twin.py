"""The dense twin: the same method written the textbook way, with (B, L, V) one-hot vectors, noise, states and logits.

The tests hold the V-free code to it, and the benchmark measures what being V-free buys. Never used for training.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Batch
from flm.algos.flm import FLM
from flm.draws import Draws
from flm.paths.evidence import Held
from flm.posterior import TokenPosterior
from flm.samplers.canvas import Canvas


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


@dataclass(frozen=True)
class DenseTwin:
    """The textbook way of an algorithm: its training loss, and its sampling from noise in some steps."""

    loss: Callable[[Algorithm, Batch, Draws], Tensor]
    sample: Callable[[Algorithm, Canvas, int, torch.Generator], Tensor]


def flm_loss(algorithm: FLM, batch: Batch, draws: Draws) -> Tensor:
    tau = draws.stratified(len(batch.tokens))
    t = algorithm.clock.time(tau).float()
    noise = draws.normal(*batch.tokens.shape, algorithm.vocab_size)
    weight = batch.weight / batch.weight.sum()
    return dense_loss(algorithm.backbone, batch.tokens, weight, t, tau.float(), noise, _log_prior(algorithm))


def flm_sample(algorithm: FLM, canvas: Canvas, steps: int, generator: torch.Generator) -> Tensor:
    shape = (*canvas.tokens.shape, algorithm.vocab_size)
    noise = torch.randn(shape, generator=generator, device=canvas.tokens.device)
    return dense_euler(algorithm.backbone, algorithm.clock, canvas, steps, noise, _log_prior(algorithm))


def _log_prior(algorithm: FLM) -> Tensor | None:
    return algorithm.log_prior if algorithm.reads == "evidence" else None


TWINS: dict[type[Algorithm], DenseTwin] = {FLM: DenseTwin(flm_loss, flm_sample)}
