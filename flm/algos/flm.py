"""FLM: flow matching on one-hot vectors from Gaussian noise, trained as a denoiser with cross-entropy.

Lee et al., "Flow Map Language Models", arXiv 2602.16813. The minimiser of the loss is the posterior p(token | x_t), which
gives the velocity (D - x) / (1 - t).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Batch, Loss
from flm.algos.gaussian_likelihood import GaussianLikelihood
from flm.draws import Draws
from flm.paths.clock import DecodingErrorClock
from flm.paths.gaussian import State, context_free_cross_entropy, corrupt
from flm.posterior import TokenPosterior
from flm.samplers.flow import FlowSampler
from flm.vocabulary_losses import cross_entropy


class SingleTimeDenoiser:
    """D_tau(x): a backbone that reads one view of the state."""

    def __init__(self, backbone: nn.Module, clock: nn.Module):
        self.backbone, self.clock = backbone, clock

    @property
    def tables(self) -> tuple[Tensor, ...]:
        return (self.backbone.input_table,)

    def __call__(self, state: State, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
        return self.backbone(state.views[0], tau)


class FLM(GaussianLikelihood, Algorithm):
    """The flow language model.

    Args:
        backbone: called as backbone(vocab_size=V); gives a module with `input_table` (V, D) that maps (view (B, L, D),
            tau (B,)) to a TokenPosterior.
        vocab_size: V.
        length: L.
        clock: maps tau to physical time; None for the decoding-error clock of the vocabulary.
    """

    def __init__(
        self, backbone: Callable[..., nn.Module], vocab_size: int, length: int, clock: nn.Module | None = None
    ):
        super().__init__(vocab_size, length)
        self.backbone = backbone(vocab_size=vocab_size)
        self.clock = DecodingErrorClock(vocab_size) if clock is None else clock

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        tau = draws.stratified(batch.tokens.shape[0])
        state = corrupt(batch.tokens, self.clock.time(tau).float(), (self.backbone.input_table,), draws.local)
        posterior = self.backbone(state.views[0], tau.float())
        return token_loss(posterior, batch, tau)

    def denoiser(self) -> SingleTimeDenoiser:
        return SingleTimeDenoiser(self.backbone, self.clock)

    def sampler(self, **options: Any) -> FlowSampler:
        return FlowSampler(**options)

    def context_free_loss(self, token_counts: Tensor, tau: Tensor, draws: Draws) -> Tensor:
        return context_free_cross_entropy(token_counts, self.clock.time(tau.double()), draws.local)


def token_loss(posterior: TokenPosterior, batch: Batch, tau: Tensor) -> Loss:
    """Mean cross-entropy of the data's tokens over the tokens that count."""
    weight = batch.weight / batch.weight.sum().clamp_min(1)
    total, per_token = cross_entropy(posterior, batch.tokens, weight)
    per_sequence = (per_token * batch.weight).sum(1) / batch.weight.sum(1).clamp_min(1)
    return Loss(total, per_sequence.detach(), tau.detach())
