"""FMLM: the flow map of FLM as one two-time softmax denoiser, distilled in a single stage (arXiv 2602.16813)."""

from typing import Annotated

import torch
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Batch, FlowMapBackbone, Loss
from flm.algos.flm import SingleTimeDenoiser
from flm.algos.flow_map_objectives import OBJECTIVES
from flm.algos.gaussian_likelihood import GaussianLikelihood
from flm.algos.loss_weight import LossWeight, apply_loss_weight
from flm.algos.teacher import Distillation, backbone_of, copy_weights
from flm.algos.token_losses import summed, token_loss
from flm.draws import Draws
from flm.paths.clock import DecodingErrorClock
from flm.paths.flow_map import PairLaw, draw_time_pairs, whole_number
from flm.paths.gaussian import State, context_free_cross_entropy, corrupt, noise_for
from flm.posterior import TokenPosterior
from flm.ranges import Count, Share, one_of
from flm.samplers.flow_map import FlowMapSampler
from flm.vocabulary_losses import cross_entropy


class TwoTimeDenoiser(SingleTimeDenoiser):
    """delta_{s,t}(x): a backbone that reads one view of the state and two clock times."""

    def __call__(self, state: State, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
        return self.backbone(state.views[0], tau, tau if tau_to is None else tau_to)


class FMLM(GaussianLikelihood, Distillation):
    """The flow map language model.

    A share of every batch is diagonal (both times equal): there the target is the teacher's prediction, or the data. The
    rest are jumps, whose target the objective makes from the network itself.

    Args:
        backbone: called as backbone(vocab_size=V, two_times=True).
        vocab_size: V.
        length: L.
        teacher: a trained FLM; None to learn the denoiser from data at the same time.
        initialize_student_from_teacher: start at the teacher's weights.
        objective: semigroup, lagrangian or eulerian.
        diagonal_fraction: share of the batch in [0, 1] on the diagonal.
        time_pairs: law of the jumps' ends, uniform_gap or uniform_pair.
        boundary_prob: one jump in so many is (0, 1), what one-step generation does; None for none.
        random_middle: semigroup midpoints uniform on the clock between the ends, not halfway.
        averaged_targets: targets from the running average of the weights instead of the weights.
        learnable_loss_weighting: exp(-w) loss + w with a learned w(tau).
        clock: None for the decoding-error clock.
    """

    samplers = {"": FlowMapSampler}

    def __init__(
        self,
        backbone: FlowMapBackbone,
        vocab_size: Count,
        length: Count,
        teacher: Algorithm | None = None,
        initialize_student_from_teacher: bool = True,
        objective: Annotated[str, one_of(OBJECTIVES)] = "semigroup",
        diagonal_fraction: Share = 0.5,
        time_pairs: PairLaw = "uniform_gap",
        boundary_prob: Count | None = 32,
        random_middle: bool = False,
        averaged_targets: bool = False,
        learnable_loss_weighting: bool = False,
        clock: nn.Module | None = None,
    ):
        super().__init__(vocab_size, length, teacher=teacher)
        self.backbone = backbone(vocab_size=vocab_size, two_times=True)
        self.clock = DecodingErrorClock(vocab_size) if clock is None else clock
        self.check_clock(self.clock)
        if teacher is not None and initialize_student_from_teacher:
            copy_weights(backbone_of(teacher, "algo.teacher_path"), self.backbone, length, "algo.teacher_path")
        self.objective = OBJECTIVES[objective]()
        self.whole_networks = self.objective.forward_mode
        self.diagonal_fraction, self.time_pairs, self.boundary_prob = diagonal_fraction, time_pairs, boundary_prob
        self.random_middle, self.averaged_targets = random_middle, averaged_targets
        self.loss_weight = LossWeight() if learnable_loss_weighting else None

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        size = len(batch.tokens)
        split = min(size, whole_number(self.diagonal_fraction * size, draws))
        diagonal, jumps = slice(0, split), slice(split, size)
        teacher = None if self.teacher("teacher") is None else self.teacher("teacher").denoiser()
        network = self.averaged("backbone") if self.averaged_targets else self.backbone
        # the student's table, the targets' where it is another one, the teacher's: all read one state
        own, averaged = (self.backbone.input_table,), (network.input_table,) if self.averaged_targets else ()
        teachers = teacher.tables if teacher else ()

        # one factoring serves both parts of the batch: a law of fewer tables is a part of that of all
        everything = (*own, *averaged, *teachers)
        law = noise_for(everything)
        read = len(everything) if self.objective.reads_teacher else len(everything) - len(teachers)

        tau = draws.stratified(split)
        still = corrupt(batch.tokens[diagonal], self.clock.time(tau).float(), everything, draws.local, law)
        still = State((still.views[0], *still.views[1 + len(averaged) :]))
        pairs = draw_time_pairs(size - split, draws, self.time_pairs, self.boundary_prob, self.random_middle)
        start = self.clock.time(pairs.start).float()
        moving = corrupt(batch.tokens[jumps], start, everything[:read], draws.local, law.first(read))

        def denoise(state: State, tau: Tensor) -> TokenPosterior:
            if teacher is None:
                return network(state.views[0], tau, tau)
            return teacher(State(state.views[1:]), tau)

        with torch.no_grad():
            still_target, jump_target = batch.tokens[diagonal], None
            if teacher is not None and split > 0:
                still_target = denoise(still, tau.float())
            if split < size:
                seen = State(detached(moving).views[len(averaged) :])
                jump_target = self.objective(network, denoise, self.clock, network.input_table, seen, pairs)

        posterior = self.backbone(
            torch.cat([still.views[0], moving.views[0]]),
            torch.cat([tau, pairs.start]).float(),
            torch.cat([tau, pairs.end]).float(),
        )
        total, per_token = 0.0, []
        for rows, target, times in ((diagonal, still_target, tau), (jumps, jump_target, pairs.start)):
            if rows.start == rows.stop:
                continue
            part, values = self._weighted(posterior.rows(rows), target, batch.weight[rows], times)
            total = total + part
            per_token.append(values)
        loss = summed(total, torch.cat(per_token), batch.weight, torch.cat([tau, pairs.start]))
        for name, rows in (("diagonal", diagonal), ("jump", jumps)):
            if rows.start < rows.stop:
                loss.metrics[f"{name}_nats_per_token"] = loss.sums[rows].sum(), loss.counts[rows].sum()
        return loss

    def validation_loss(self, batch: Batch, draws: Draws) -> Loss:
        """The denoising cross-entropy on the diagonal, against the data: comparable with the teacher's."""
        tau = draws.stratified(len(batch.tokens))
        state = corrupt(batch.tokens, self.clock.time(tau).float(), (self.backbone.input_table,), draws.local)
        return token_loss(self.denoiser()(state, tau.float()), batch, tau)

    def denoiser(self) -> TwoTimeDenoiser:
        return TwoTimeDenoiser(self.backbone, self.clock)

    def context_free_loss(self, token_counts: Tensor, tau: Tensor, draws: Draws) -> Tensor:
        return context_free_cross_entropy(token_counts, self.clock.time(tau.double()), draws.local)

    def _weighted(self, posterior: TokenPosterior, target, weight: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        def loss(weight: Tensor) -> tuple[Tensor, Tensor]:
            return cross_entropy(posterior, target, weight)

        if self.loss_weight is None:
            return loss(weight)
        return apply_loss_weight(self.loss_weight(tau.float()), weight, loss)


def detached(state: State) -> State:
    return State(tuple(view.detach() for view in state.views))
