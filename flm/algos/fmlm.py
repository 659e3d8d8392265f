"""FMLM: the flow map of FLM as one two-time softmax denoiser, distilled in a single stage (arXiv 2602.16813)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Backbone, Batch, Loss
from flm.algos.evidence_map import EvidenceMap, two_jumps
from flm.algos.flm import SingleTimeDenoiser, log_frequencies
from flm.algos.flow_map_objectives import OBJECTIVES, Network
from flm.algos.gaussian_likelihood import GaussianLikelihood
from flm.algos.losses import LossWeight, apply_loss_weight, of_parts, summed, token_loss
from flm.algos.teacher import Distillation, backbone_of, copy_weights, denoiser_on
from flm.draws import Draws, Part
from flm.models.attention import DocumentMask, document_mask
from flm.outputs import Output
from flm.paths.clock import DecodingErrorClock
from flm.paths.evidence import FullState, noised
from flm.paths.flow_map import PairLaw, TimePairs, draw_time_pairs
from flm.paths.gaussian import Given, State, context_free_cross_entropy, corrupt, noise_for
from flm.posterior import Offset, TokenPosterior
from flm.ranges import Count, Share, one_of
from flm.samplers.solvers import FLOW_MAP_SOLVERS
from flm.vocabulary_losses import cross_entropy


class TwoTimeDenoiser(SingleTimeDenoiser):
    """delta_{s,t}(x): a backbone that reads one view of the state and two clock times."""

    times = 2

    def __call__(self, state: State, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
        return self.backbone(state.views[0], tau, tau if tau_to is None else tau_to, **self.options)


@dataclass(frozen=True)
class Lesson:
    """What the student learns at some rows of a batch.

    Attributes:
        target: token ids, or probabilities over V as an `Output`; None where there are no rows.
        offset: added to the student's logits there; None: nothing.
    """

    target: Tensor | Output | None
    offset: Offset | None = None


class FMLM(GaussianLikelihood, Distillation):
    """The flow map language model.

    A share of every batch lies on the diagonal, where both times are equal and the target is the teacher's prediction or,
    without a teacher, the data. The rest are jumps, whose target the objective makes from the network itself.

    Args:
        backbone: called as backbone(vocab_size=V, two_times=True).
        vocab_size: V.
        length: L.
        teacher: a trained FLM; None to learn the denoiser from data at the same time.
        initialize_student_from_teacher: start at the teacher's weights.
        objective: semigroup, lagrangian or eulerian.
        diagonal_fraction: share of the batch in [0, 1] on the diagonal.
        time_pairs: law of the jumps' ends, uniform_gap or uniform_pair.
        boundary_prob: one jump in this many goes from 0 to 1, as one-step generation does; None: none does.
        random_middle: semigroup midpoints uniform on the clock between the ends, not halfway.
        averaged_targets: targets from the running average of the weights instead of the weights.
        learnable_loss_weighting: exp(-w) loss + w with a learned w(tau).
        clock: None for the decoding-error clock.
        clean_given: as in `FLM`, and the teacher's: given tokens are read without noise, by student and teacher.
        reads: as in `FLM`, and the teacher's; with "evidence" it is that toward the end of a jump (`flm.algos.evidence_map`).
    """

    samplers = FLOW_MAP_SOLVERS

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
        reads: Literal["view", "evidence"] = "view",
    ):
        super().__init__(vocab_size, length, teacher=teacher)
        self.clean_given, self.reads = clean_given, reads
        if random_middle and objective != "semigroup":
            raise ValueError(f"algo.random_middle is for algo.objective=semigroup: {objective} has no midpoints")
        if reads == "evidence" and objective != "semigroup":
            raise ValueError(f"algo.reads=evidence is for algo.objective=semigroup: {objective} differentiates views alone")
        self.backbone = backbone(vocab_size=vocab_size, two_times=True)
        self.clock = DecodingErrorClock(vocab_size) if clock is None else clock
        self.check_teacher("teacher", SingleTimeDenoiser, "algo=flm", self.clock, clean_given, reads)
        if teacher is not None and initialize_student_from_teacher:
            copy_weights(backbone_of(teacher, "algo.teacher_path"), self.backbone, length, "algo.teacher_path")
        self.objective = OBJECTIVES[objective]()
        self.whole_networks = self.objective.forward_mode
        self.diagonal_fraction, self.time_pairs, self.boundary_prob = diagonal_fraction, time_pairs, boundary_prob
        self.random_middle, self.averaged_targets = random_middle, averaged_targets
        self.loss_weight = LossWeight() if learnable_loss_weighting else None
        if reads == "evidence":  # uniform until `know_frequencies`
            self.register_buffer("log_prior", torch.zeros(vocab_size))

    def know_frequencies(self, token_counts: Tensor) -> None:
        if self.reads == "evidence":
            teacher = self.teacher("teacher")  # with its prior, student and teacher are one function on the diagonal
            self.log_prior.copy_(log_frequencies(token_counts) if teacher is None else teacher.log_prior)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        split = draws.split(len(batch.tokens), self.diagonal_fraction, fill=self.networks_are_split)
        diagonal, jumps = split.parts
        batch = batch.rows(split.order, split.counted)
        mask = document_mask(batch.documents)
        tau = diagonal.draws.stratified(len(diagonal))
        pairs = draw_time_pairs(len(jumps), jumps.draws, self.time_pairs, self.boundary_prob, self.random_middle)
        prepare = self._from_evidence if self.reads == "evidence" else self._from_views
        view, lessons = prepare(batch, split.parts, tau, pairs, mask)
        starts, ends = torch.cat([tau, pairs.start]), torch.cat([tau, pairs.end])
        posterior = self.backbone(view, starts.float(), ends.float(), **({} if mask is None else {"mask": mask}))
        total, per_token = 0.0, []
        for part, lesson in zip(split.parts, lessons, strict=True):
            if len(part) == 0:
                continue
            own = replace(posterior.rows(part.rows), offset=lesson.offset)
            found, values = self._weighted(own, lesson.target, batch.weight[part.rows], starts[part.rows])
            total = total + found
            per_token.append(values)
        loss = summed(total, torch.cat(per_token), batch.weight, starts)
        return of_parts(loss, split, ("diagonal", "jump"))

    def _from_views(
        self, batch: Batch, parts: Sequence[Part], tau: Tensor, pairs: TimePairs, mask: DocumentMask | None
    ) -> tuple[Tensor, list["Lesson"]]:
        """The student's input (B, L, D), and its targets on the diagonal and at the jumps."""
        diagonal, jumps = parts
        given = Given(batch.tokens, batch.given, self.clean_given)
        network = self.averaged("backbone") if self.averaged_targets else self.backbone
        # tables that read the same state: the student's, that of its average if targets come from it, and the teacher's
        own, averaged = (self.backbone.input_table,), (network.input_table,) if self.averaged_targets else ()
        teachers = () if self.teacher("teacher") is None else self.teacher("teacher").denoiser().tables

        # one Cholesky factor serves both parts of the batch: that of the first tables is its upper left block
        everything = (*own, *averaged, *teachers)
        law = noise_for(everything)
        read = len(everything) if self.objective.reads_teacher else len(everything) - len(teachers)
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
        shown = given.seen(State((torch.cat([still.views[0], moving.views[0]]),)), own)
        return shown.views[0], [Lesson(target) for target in targets]

    def _from_evidence(
        self, batch: Batch, parts: Sequence[Part], tau: Tensor, pairs: TimePairs, mask: DocumentMask | None
    ) -> tuple[Tensor, list["Lesson"]]:
        """As `_from_views`, from whole states, which are computed chunk by chunk."""
        network = self.averaged("backbone") if self.averaged_targets else self.backbone
        views, lessons = [], []
        for part, start, end in zip(parts, (tau, pairs.start), (tau, pairs.end), strict=True):
            tokens, at = batch.tokens[part.rows], None if mask is None else mask[part.rows]
            given = Given(tokens, batch.given[part.rows], self.clean_given)
            student, clean, x, t = self.denoiser(at), *self._noised(given, start, part.draws)
            evidence = student.evidence(x, clean, start.float(), end.float())
            views.append(student.read(evidence, tokens.shape[1]))
            target: Tensor | Output = tokens
            with torch.no_grad():
                if part is parts[1] and len(part) > 0:
                    asked = EvidenceMap(network, self.clock, self.log_prior, at, self.clean_given)
                    target = two_jumps(asked, x, given, clean, pairs)
                elif self.teacher("teacher") is not None and len(part) > 0:
                    target = denoiser_on(self.teacher("teacher"), at).predict(x, t, start.float())
            lessons.append(Lesson(target, evidence))
        return torch.cat(views), lessons

    def _noised(self, given: Given, tau: Tensor, draws: Draws) -> tuple[Tensor, FullState, Tensor]:
        """Which positions are clean (B, L), x, and the physical time of each position (B, L)."""
        clean = given.mask if given.clean else torch.zeros_like(given.mask)
        t = self.clock.time(tau)[:, None].expand(clean.shape).masked_fill(clean, 1.0)
        return clean, noised(given.tokens, t, draws.rows.seeds(len(tau)), self.log_prior), t

    def _teacher_on(self, rows: slice, mask: DocumentMask | None, given: Given) -> Callable[[State, Tensor], Output]:
        """The teacher on some rows of the batch. It is called with its own views of the state."""
        denoiser, known = denoiser_on(self.teacher("teacher"), None if mask is None else mask[rows]), given.rows(rows)
        return lambda state, tau: denoiser(known.seen(state, denoiser.tables), tau)

    def validation_loss(self, batch: Batch, draws: Draws) -> Loss:
        """The denoising cross-entropy on the diagonal, against the data: comparable with the teacher's."""
        tau = draws.stratified(len(batch.tokens))
        if self.reads == "evidence":
            clean, x, _ = self._noised(Given(batch.tokens, batch.given, self.clean_given), tau, draws)
            posterior = self.denoiser(document_mask(batch.documents)).jump(x, clean, tau.float(), tau.float())
            return token_loss(posterior, batch, tau)
        tables = (self.backbone.input_table,)
        state = corrupt(batch.tokens, self.clock.time(tau).float(), tables, draws.rows)
        state = Given(batch.tokens, batch.given, self.clean_given).seen(state, tables)
        return token_loss(self.denoiser(document_mask(batch.documents))(state, tau.float()), batch, tau)

    def denoiser(self, mask: DocumentMask | None = None) -> Any:
        if self.reads == "evidence":
            return EvidenceMap(self.backbone, self.clock, self.log_prior, mask, self.clean_given)
        return TwoTimeDenoiser(self.backbone, self.clock, mask, self.clean_given)

    def context_free_loss(self, token_counts: Tensor, tau: Tensor, draws: Draws) -> Tensor:
        return context_free_cross_entropy(token_counts, self.clock.time(tau.double()), draws.local)

    def _weighted(self, posterior: TokenPosterior, target, weight: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        def loss(weight: Tensor) -> tuple[Tensor, Tensor]:
            return cross_entropy(posterior, target, weight)

        if self.loss_weight is None:
            return loss(weight)
        return apply_loss_weight(self.loss_weight(tau.float()), weight, loss)


def _asked(network: nn.Module, given: Given, mask: DocumentMask | None, rows: slice = slice(None)) -> Network:
    """A network on some rows of a batch, with their document mask, shown given tokens as `given` says."""
    options = {} if mask is None else {"mask": mask[rows]}

    def ask(view: Tensor, tau: Tensor, tau_to: Tensor) -> TokenPosterior:
        return network(given.seen(State((view,)), (network.input_table,)).views[0], tau, tau_to, **options)

    return ask


def detached(state: State) -> State:
    return State(tuple(view.detach() for view in state.views))
