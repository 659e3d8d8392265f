"""KL-flow: flow matching along the KL geodesic from Dirichlet noise to smoothed tokens (arXiv 2411.16821).

The target is affine in the one-hot token. So the velocity of the flow follows from p(token | x_t), which is learned by
cross-entropy, for correlated positions too (proposition 3.2 there).
"""

from typing import Annotated

import torch
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Backbone, Batch, Loss
from flm.algos.losses import token_loss
from flm.draws import Draws
from flm.kl_flow.geodesic import Geodesic, GeodesicClock, context_free_cross_entropy
from flm.kl_flow.geodesic_bound import GeodesicLikelihood
from flm.kl_flow.geodesic_sampler import GeodesicSampler
from flm.kl_flow.geodesic_state import FEATURES, State, corrupt, embed
from flm.models.attention import DocumentMask, document_mask
from flm.posterior import TokenPosterior
from flm.ranges import Count, OpenShare, Positive, one_of
from flm.samplers.verified import Verifiable


class GeodesicDenoiser:
    """The posterior of tokens given a state: a backbone that reads its features.

    Args:
        mask: as the backbone takes it; None: every position sees every other.

    Attributes:
        times: how many clock times the network is conditioned on.
    """

    times = 1

    def __init__(
        self, backbone: nn.Module, path: Geodesic, clock: GeodesicClock, features: str, mask: DocumentMask | None = None
    ):
        self.backbone, self.path, self.clock, self.features = backbone, path, clock, features
        self.options = {} if mask is None else {"mask": mask}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of states: that of the weights, but at least fp32."""
        return torch.promote_types(self.backbone.input_table.dtype, torch.float32)

    def view(self, state: State) -> Tensor:
        """The input of the backbone, (B, L, D)."""
        return embed(state, self.backbone.input_table, self.features, self.path)

    def __call__(self, state: State, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
        return self.backbone(self.view(state), tau, **self.options)


FeatureName = Annotated[str, one_of(FEATURES)]


class KLFlow(GeodesicLikelihood, Algorithm):
    """KL-flow.

    Given tokens (weight 0) are clean one-hot vectors. Padding is neither seen nor learned.

    Args:
        backbone: called as backbone(vocab_size=V); gives a module with `input_table` (V, D) that maps (view (B, L, D),
            tau (B,)) to a TokenPosterior, and takes `mask` if batches name documents.
        vocab_size: V.
        length: L.
        max_t: physical time at which the path ends; None: where 99% of tokens are known from their own noisy point alone.
        smoothing: mass of the target spread over the vocabulary, in (0, 1). It warps time, and so the sharpness of the input.
        concentration: of the Dirichlet prior; only with 1 there is a likelihood bound.
        features: what the network reads of a state: simplex (as published), sharpened, log or posterior.
    """

    samplers = {"": Verifiable(GeodesicSampler)}

    def __init__(
        self,
        backbone: Backbone,
        vocab_size: Count,
        length: Count,
        max_t: OpenShare | None = None,
        smoothing: OpenShare = 0.01,
        concentration: Positive = 1.0,
        features: FeatureName = "simplex",
    ):
        super().__init__(vocab_size, length)
        self.path, self.features = Geodesic.of(vocab_size, max_t, smoothing, concentration), features
        self.clock = GeodesicClock(self.path.max_t)
        self.bound_kind = KLFlow.bound_kind if concentration == 1 else None
        self.backbone = backbone(vocab_size=vocab_size)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        t = self.path.max_t * draws.stratified(len(batch.tokens))
        denoiser = self.denoiser(document_mask(batch.documents))
        state = corrupt(batch.tokens, t, self.path, draws.rows.seeds(len(t)), batch.weight == 0, denoiser.dtype)
        tau = self.clock.tau(t)
        return token_loss(denoiser(state, tau.float()), batch, tau)

    def denoiser(self, mask: DocumentMask | None = None) -> GeodesicDenoiser:
        return GeodesicDenoiser(self.backbone, self.path, self.clock, self.features, mask)

    def context_free_loss(self, token_counts: Tensor, tau: Tensor, draws: Draws) -> Tensor:
        return context_free_cross_entropy(self.path, token_counts, self.clock.time(tau.double()), draws.local)


def check_path(teacher: nn.Module, path: Geodesic, features: str) -> None:
    """Raises ValueError if a teacher's path or features differ from the student's."""
    if teacher.path != path or teacher.features != features:
        raise ValueError(
            "algo.teacher_path: needs a checkpoint of algo=kl_flow with the same max_t, smoothing, concentration and "
            f"features as algo.*, not one with {teacher.path} and {teacher.features}"
        )
