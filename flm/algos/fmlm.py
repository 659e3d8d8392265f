"""FMLM: the flow map of FLM as one two-time softmax denoiser, distilled in a single stage (arXiv 2602.16813)."""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Backbone, Batch, Loss
from flm.algos.flm import SingleTimeDenoiser
from flm.algos.flow_map_objectives import OBJECTIVES, Network
from flm.algos.gaussian_likelihood import GaussianLikelihood
from flm.algos.loss_weight import LossWeight, apply_loss_weight
from flm.algos.teacher import Distillation, backbone_of, copy_weights, denoiser_on
from flm.algos.token_losses import of_parts, summed, token_loss
from flm.draws import Draws
from flm.models.attention import document_mask
from flm.outputs import Output
from flm.paths.clock import DecodingErrorClock
from flm.paths.flow_map import PairLaw, draw_time_pairs
from flm.paths.gaussian import Given, State, context_free_cross_entropy, corrupt, noise_for
from flm.posterior import TokenPosterior
from flm.ranges import Count, Share, one_of
from flm.samplers.flow_map import FlowMapSampler
from flm.vocabulary_losses import cross_entropy


class TwoTimeDenoiser(SingleTimeDenoiser):
    """delta_{s,t}(x): a backbone that reads one view of the state and two clock times."""

    times = 2

    def __call__(self, state: State, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
        return self.backbone(state.views[0], tau, tau if tau_to is None else tau_to, **self.options)


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
        clean_given: as in `FLM`, and the teacher's: what is given is read without noise, by student and teacher.
    """

    samplers = {"": FlowMapSampler}

    def __init__(
        self,
        backbone: Backbone,
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
        clean_given: bool = False,
    ):
        super().__init__(vocab_size, length, teacher=teacher)
        self.clean_given = clean_given
        if random_middle and objective != "semigroup":
            raise ValueError(f"algo.random_middle is for algo.objective=semigroup: {objective} has no midpoints")
        self.backbone = backbone(vocab_size=vocab_size, two_times=True)
        self.clock = DecodingErrorClock(vocab_size) if clock is None else clock
        self.check_teacher("teacher", SingleTimeDenoiser, "algo=flm", self.clock, clean_given)
        if teacher is not None and initialize_student_from_teacher:
            copy_weights(backbone_of(teacher, "algo.teacher_path"), self.backbone, length, "algo.teacher_path")
        self.objective = OBJECTIVES[objective]()
        self.whole_networks = self.objective.forward_mode
        self.diagonal_fraction, self.time_pairs, self.boundary_prob = diagonal_fraction, time_pairs, boundary_prob
        self.random_middle, self.averaged_targets = random_middle, averaged_targets
        self.loss_weight = LossWeight() if learnable_loss_weighting else None

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        split = draws.split(len(batch.tokens), self.diagonal_fraction, fill=self.networks_are_split)
        diagonal, jumps = split.parts
        batch = batch.rows(split.order, split.counted)
        given, mask = Given(batch.tokens, batch.given, self.clean_given), document_mask(batch.documents)
        network = self.averaged("backbone") if self.averaged_targets else self.backbone
        # the student's table, the targets' where it is another one, the teacher's: all read one state
        own, averaged = (self.backbone.input_table,), (network.input_table,) if self.averaged_targets else ()
        teachers = () if self.teacher("teacher") is None else self.teacher("teacher").denoiser().tables

        # one factoring serves both parts of the batch: a law of fewer tables is a part of that of all
        everything = (*own, *averaged, *teachers)
        law = noise_for(everything)
        read = len(everything) if self.objective.reads_teacher else len(everything) - len(teachers)

        tau = diagonal.draws.stratified(len(diagonal))
        pairs = draw_time_pairs(len(jumps), jumps.draws, self.time_pairs, self.boundary_prob, self.random_middle)
        times = self.clock.time(torch.cat([tau, pairs.start])).float()
        still, moving = (
            corrupt(batch.tokens[part.rows], times[part.rows], everything[:count], part.draws.rows, law.first(count))
            for part, count in ((diagonal, len(everything)), (jumps, read))
        )
        still = State((still.views[0], *still.views[1 + len(averaged) :]))

        targets: list[Tensor | Output | None] = [batch.tokens[diagonal.rows], None]
        with torch.no_grad():
            if teachers and len(diagonal) > 0:
                targets[0] = self._teacher_on(diagonal.rows, mask, given)(State(still.views[1:]), tau.float())
            if len(jumps) > 0:
                known, seen = given.rows(jumps.rows), State(detached(moving).views[len(averaged) :])
                asked = _asked(network, known, mask, jumps.rows)
                start = self._teacher_on(jumps.rows, mask, given) if teachers and self.objective.reads_teacher else None

                def denoise(state: State, tau: Tensor) -> Output:
                    return asked(state.views[0], tau, tau) if start is None else start(State(state.views[1:]), tau)

                def point(output: Output) -> State:
                    return known.point(output, (network.input_table,))

                targets[1] = self.objective(asked, denoise, self.clock, point, seen, pairs)

        posterior = _asked(self.backbone, given, mask)(
            torch.cat([still.views[0], moving.views[0]]),
            torch.cat([tau, pairs.start]).float(),
            torch.cat([tau, pairs.end]).float(),
        )
        total, per_token = 0.0, []
        for part, target, at in ((diagonal, targets[0], tau), (jumps, targets[1], pairs.start)):
            if len(part) == 0:
                continue
            found, values = self._weighted(posterior.rows(part.rows), target, batch.weight[part.rows], at)
            total = total + found
            per_token.append(values)
        loss = summed(total, torch.cat(per_token), batch.weight, torch.cat([tau, pairs.start]))
        return of_parts(loss, split, ("diagonal", "jump"))

    def _teacher_on(self, rows: slice, mask: Tensor | None, given: Given) -> Callable[[State, Tensor], Output]:
        """The teacher on some rows of the batch, for its own views of the state."""
        denoiser, known = denoiser_on(self.teacher("teacher"), None if mask is None else mask[rows]), given.rows(rows)
        return lambda state, tau: denoiser(known.seen(state, denoiser.tables), tau)

    def validation_loss(self, batch: Batch, draws: Draws) -> Loss:
        """The denoising cross-entropy on the diagonal, against the data: comparable with the teacher's."""
        tau = draws.stratified(len(batch.tokens))
        tables = (self.backbone.input_table,)
        state = corrupt(batch.tokens, self.clock.time(tau).float(), tables, draws.rows)
        state = Given(batch.tokens, batch.given, self.clean_given).seen(state, tables)
        return token_loss(self.denoiser(document_mask(batch.documents))(state, tau.float()), batch, tau)

    def denoiser(self, mask: Tensor | None = None) -> TwoTimeDenoiser:
        return TwoTimeDenoiser(self.backbone, self.clock, mask, self.clean_given)

    def context_free_loss(self, token_counts: Tensor, tau: Tensor, draws: Draws) -> Tensor:
        return context_free_cross_entropy(token_counts, self.clock.time(tau.double()), draws.local)

    def _weighted(self, posterior: TokenPosterior, target, weight: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        def loss(weight: Tensor) -> tuple[Tensor, Tensor]:
            return cross_entropy(posterior, target, weight)

        if self.loss_weight is None:
            return loss(weight)
        return apply_loss_weight(self.loss_weight(tau.float()), weight, loss)


def _asked(network: nn.Module, given: Given, mask: Tensor | None, rows: slice = slice(None)) -> Network:
    """A network on rows of a batch: positions see their own document, and given tokens as the convention has it."""
    options = {} if mask is None else {"mask": mask[rows]}

    def ask(view: Tensor, tau: Tensor, tau_to: Tensor) -> TokenPosterior:
        return network(given.seen(State((view,)), (network.input_table,)).views[0], tau, tau_to, **options)

    return ask


def detached(state: State) -> State:
    return State(tuple(view.detach() for view in state.views))
