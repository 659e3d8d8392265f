"""FLM: flow matching on one-hot vectors from Gaussian noise, trained as a denoiser with cross-entropy.

Lee et al., "Flow Map Language Models", arXiv 2602.16813. The minimiser of the loss is the posterior p(token | x_t), which
gives the velocity (D - x) / (1 - t).
"""

from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Backbone, Batch, Loss
from flm.algos.gaussian_likelihood import GaussianLikelihood
from flm.algos.token_losses import token_loss
from flm.draws import Draws
from flm.models.attention import document_mask
from flm.paths.clock import DecodingErrorClock
from flm.paths.gaussian import State, context_free_cross_entropy, corrupt, embed, where
from flm.posterior import TokenPosterior
from flm.ranges import Count
from flm.samplers.flow import FlowSampler


class SingleTimeDenoiser:
    """D_tau(x): a backbone that reads one view of the state.

    Args:
        mask: as the backbone takes it; None: every position sees every other.
        clean_given: see `FLM`.
    """

    def __init__(self, backbone: nn.Module, clock: nn.Module, mask: Tensor | None = None, clean_given: bool = False):
        self.backbone, self.clock, self.clean_given = backbone, clock, clean_given
        self.options = {} if mask is None else {"mask": mask}

    @property
    def tables(self) -> tuple[Tensor, ...]:
        return (self.backbone.input_table,)

    def __call__(self, state: State, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
        return self.backbone(state.views[0], tau, **self.options)


class FLM(GaussianLikelihood, Algorithm):
    """The flow language model.

    Args:
        backbone: called as backbone(vocab_size=V); gives a module with `input_table` (V, D) that maps (view (B, L, D),
            tau (B,)) to a TokenPosterior.
        vocab_size: V.
        length: L.
        clock: maps tau to physical time; None for the decoding-error clock of the vocabulary.
        clean_given: whether what a batch or a canvas gives is read without noise at all times. Then D is the posterior given
            the prompt, and the flow that of p(response | prompt); with given tokens on their noisy path, what comes early is
            written without knowing the prompt.
    """

    samplers = {"": FlowSampler}

    def __init__(
        self,
        backbone: Backbone,
        vocab_size: Count,
        length: Count,
        clock: nn.Module | None = None,
        clean_given: bool = False,
    ):
        super().__init__(vocab_size, length)
        self.clean_given = clean_given
        self.backbone = backbone(vocab_size=vocab_size)
        self.clock = DecodingErrorClock(vocab_size) if clock is None else clock

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        tau = draws.stratified(batch.tokens.shape[0])
        tables = (self.backbone.input_table,)
        state = corrupt(batch.tokens, self.clock.time(tau).float(), tables, draws.local)
        if self.clean_given:
            state = where(batch.given, embed(batch.tokens, tables), state)
        return token_loss(self.denoiser(document_mask(batch.documents))(state, tau.float()), batch, tau)

    def denoiser(self, mask: Tensor | None = None) -> SingleTimeDenoiser:
        return SingleTimeDenoiser(self.backbone, self.clock, mask, self.clean_given)

    def context_free_loss(self, token_counts: Tensor, tau: Tensor, draws: Draws) -> Tensor:
        return context_free_cross_entropy(token_counts, self.clock.time(tau.double()), draws.local)
