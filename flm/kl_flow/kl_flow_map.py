"""The flow map of KL-flow as one two-time softmax network: jumps along the KL geodesic's flow, for generation in a few steps.

From time a to b the flow dm/ds = p_s(x_s) moves the logits m by (s_b - s_a) p_{a,b}(x_a). Here p_{a,b} is the average of the
posterior along the way, uniform in the signal s, and so a point of the simplex. On the diagonal it is the posterior, and

    p_{a,d}(x_a) = w p_{a,b}(x_a) + (1 - w) p_{b,d}(x_b),    w = (s_b - s_a) / (s_d - s_a).

So, as for FMLM (arXiv 2602.16813), two jumps give the target of the one jump over both.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flm.algos.algorithm import Algorithm, Backbone, Batch, Loss
from flm.algos.losses import of_parts, summed, token_loss
from flm.algos.teacher import Distillation, backbone_of, copy_weights, denoiser_on
from flm.draws import Draws
from flm.kl_flow.geodesic import Geodesic, GeodesicClock, context_free_cross_entropy
from flm.kl_flow.geodesic_bound import GeodesicLikelihood
from flm.kl_flow.geodesic_map_sampler import GeodesicMapSampler
from flm.kl_flow.geodesic_state import Moved, State, corrupt
from flm.kl_flow.kl_flow import FeatureName, GeodesicDenoiser, check_path
from flm.models.attention import DocumentMask, document_mask
from flm.outputs import Combination, Output
from flm.paths.flow_map import PairLaw, TimePairs, draw_time_pairs
from flm.posterior import TokenPosterior
from flm.ranges import Count, OpenShare, Positive, Share
from flm.samplers.verified import Verifiable
from flm.vocabulary_losses import cross_entropy


class TwoTimeGeodesicDenoiser(GeodesicDenoiser):
    """p_{a,b}: a backbone that reads a state's features and two clock times."""

    times = 2

    def __call__(self, state: State, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
        return self.backbone(self.view(state), tau, tau if tau_to is None else tau_to, **self.options)


@dataclass(frozen=True)
class _Asked:
    """Rows of a batch at clock times (start, end), with the network's target there."""

    rows: slice
    state: State
    start: Tensor
    end: Tensor
    target: Tensor | Output


class KLFlowMap(GeodesicLikelihood, Distillation):
    """The flow map of KL-flow.

    A share of every batch lies on the diagonal, where both times are equal and the target is the teacher's prediction or,
    without a teacher, the data. The rest are jumps, whose targets are two jumps of the network itself.

    Args:
        backbone: called as backbone(vocab_size=V, two_times=True).
        vocab_size: V.
        length: L.
        teacher: a trained KLFlow; None to learn the posterior from data at the same time.
        initialize_student_from_teacher: start at the teacher's weights.
        diagonal_fraction: share of the batch in [0, 1] on the diagonal.
        time_pairs: law of the jumps' ends, uniform_gap or uniform_pair.
        boundary_prob: one jump in this many goes the whole way; None: none does.
        max_t, smoothing, concentration, features: as in KLFlow, and the teacher's.
    """

    samplers = {"": Verifiable(GeodesicMapSampler)}

    def __init__(
        self,
        backbone: Backbone,
        vocab_size: Count,
        length: Count,
        teacher: Algorithm | None = None,
        initialize_student_from_teacher: bool = True,
        diagonal_fraction: Share = 0.5,
        time_pairs: PairLaw = "uniform_gap",
        boundary_prob: Count | None = 32,
        max_t: OpenShare | None = None,
        smoothing: OpenShare = 0.01,
        concentration: Positive = 1.0,
        features: FeatureName = "simplex",
    ):
        super().__init__(vocab_size, length, teacher=teacher)
        self.path, self.features = Geodesic.of(vocab_size, max_t, smoothing, concentration), features
        self.clock = GeodesicClock(self.path.max_t)
        self.bound_kind = KLFlowMap.bound_kind if concentration == 1 else None
        self.backbone = backbone(vocab_size=vocab_size, two_times=True)
        if teacher is not None:
            self.check_teacher("teacher", GeodesicDenoiser, "algo=kl_flow")
            check_path(teacher, self.path, self.features)
            if initialize_student_from_teacher:
                copy_weights(backbone_of(teacher, "algo.teacher_path"), self.backbone, length, "algo.teacher_path")
        self.diagonal_fraction, self.time_pairs, self.boundary_prob = diagonal_fraction, time_pairs, boundary_prob

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        split = draws.split(len(batch.tokens), self.diagonal_fraction, fill=self.networks_are_split)
        diagonal, jumps = split.parts
        batch = batch.rows(split.order, split.counted)
        mask = document_mask(batch.documents)
        tau = diagonal.draws.stratified(len(diagonal))
        pairs = draw_time_pairs(len(jumps), jumps.draws, self.time_pairs, self.boundary_prob)
        starts = torch.cat([tau, pairs.start])
        still, moving = (
            self._state(batch, part.rows, starts[part.rows], part.draws.rows.seeds(len(part))) for part in split.parts
        )

        def masked(rows: slice) -> Tensor | None:
            return None if mask is None else mask[rows]

        asked: list[_Asked] = []
        if len(diagonal) > 0:
            target: Any = batch.tokens[diagonal.rows]
            if self.teacher("teacher") is not None:
                with torch.no_grad():
                    target = denoiser_on(self.teacher("teacher"), masked(diagonal.rows))(still, tau.float())
            asked.append(_Asked(diagonal.rows, still, tau, tau, target))
        if len(jumps) > 0:
            target = self._two_jumps(moving, pairs, masked(jumps.rows))
            asked.append(_Asked(jumps.rows, moving, pairs.start, pairs.end, target))

        denoiser = self.denoiser(mask)
        # one pass of the network over both parts
        posterior = self.backbone(
            torch.cat([denoiser.view(part.state) for part in asked]),
            torch.cat([part.start for part in asked]).float(),
            torch.cat([part.end for part in asked]).float(),
            **denoiser.options,
        )
        losses = [cross_entropy(posterior.rows(part.rows), part.target, batch.weight[part.rows]) for part in asked]
        loss = summed(sum(total for total, _ in losses), torch.cat([values for _, values in losses]), batch.weight, starts)
        return of_parts(loss, split, ("diagonal", "jump"))

    @torch.no_grad()
    def _two_jumps(self, state: State, pairs: TimePairs, mask: DocumentMask | None) -> Combination:
        """The target of a jump over each pair: the average of the predictions of its two parts."""
        denoiser = self.denoiser(mask)
        t = [self.clock.time(tau) for tau in (pairs.start, pairs.middle, pairs.end)]
        tau = [tau.float() for tau in (pairs.start, pairs.middle, pairs.end)]
        a, b, d = (self.path.signal(time) for time in t)
        first = denoiser(state, tau[0], tau[1])
        halfway = state.at(Moved(state.logits, first, b - a), t[1])
        second = denoiser(halfway, tau[1], tau[2])
        share = torch.where(d > a, (b - a) / (d - a).clamp_min(torch.finfo(d.dtype).tiny), 0.0)
        return Combination((share, 1 - share), (first, second))

    def _state(self, batch: Batch, rows: slice, tau: Tensor, seeds: list[int]) -> State:
        return corrupt(
            batch.tokens[rows], self.clock.time(tau), self.path, seeds, batch.weight[rows] == 0, self.denoiser().dtype
        )

    def validation_loss(self, batch: Batch, draws: Draws) -> Loss:
        """The denoising cross-entropy on the diagonal, against the data: comparable with the teacher's."""
        tau = self.clock.tau(self.path.max_t * draws.stratified(len(batch.tokens)))  # even in t, as in KLFlow
        state = self._state(batch, slice(None), tau, draws.rows.seeds(len(tau)))
        return token_loss(self.denoiser(document_mask(batch.documents))(state, tau.float()), batch, tau)

    def denoiser(self, mask: DocumentMask | None = None) -> TwoTimeGeodesicDenoiser:
        return TwoTimeGeodesicDenoiser(self.backbone, self.path, self.clock, self.features, mask)

    def context_free_loss(self, token_counts: Tensor, tau: Tensor, draws: Draws) -> Tensor:
        return context_free_cross_entropy(self.path, token_counts, self.clock.time(tau.double()), draws.local)
