"""Two-stage distillation, second stage: denoiser and residual compressed into one softmax network.

The student's jump is trained to equal that of the pair (f, g) of the first stage; with the same start both times, the state
cancels and |X^{fg}_{s,t} - X_{s,t}|^2 = ((t-s)/(1-s))^2 |delta^{fg}_{s,t} - delta_{s,t}|^2 (first version of arXiv 2602.16813).
"""

import torch
from torch import nn

from flm.algos.algorithm import Algorithm, Backbone, Batch, Loss
from flm.algos.flm import SingleTimeDenoiser
from flm.algos.fmlm import TwoTimeDenoiser
from flm.algos.losses import LossWeight
from flm.algos.teacher import Distillation, backbone_of, copy_weights
from flm.draws import Draws
from flm.models.attention import DocumentMask, document_mask
from flm.paths.clock import DecodingErrorClock
from flm.paths.flow_map import PairLaw, draw_time_pairs
from flm.paths.gaussian import Given, State, corrupt
from flm.ranges import Count
from flm.samplers.solvers import FLOW_MAP_SOLVERS
from flm.two_stage.flm_distill import ResidualDenoiser, jump_fraction, jump_loss
from flm.vocabulary_losses import squared_error


class FLMDistillSecond(Distillation):
    """Trains one two-time softmax network to jump as f and g together do.

    Args:
        backbone: called as backbone(vocab_size=V, two_times=True).
        vocab_size: V.
        length: L.
        teacher_f: the FLM of the first stage; None takes the copy inside teacher_g, and another FLM than that is refused.
        teacher_g: the model of the first stage.
        time_pairs: law of the jumps' ends, uniform_gap or uniform_pair.
        boundary_prob: one jump in so many is (0, 1); None for none.
        learnable_loss_weighting: exp(-w) loss + w with a learned w(tau_s).
        clock: None for the decoding-error clock.
        clean_given: as in `FLM`, and the teacher's.
    """

    required_teachers = ("teacher_g",)
    validation_metric = "jump_squared_error"
    validation_says = "from the teacher: not a likelihood"
    samplers = FLOW_MAP_SOLVERS

    def __init__(
        self,
        backbone: Backbone,
        vocab_size: Count,
        length: Count,
        teacher_f: Algorithm | None = None,
        teacher_g: Algorithm | None = None,
        time_pairs: PairLaw = "uniform_gap",
        boundary_prob: Count | None = 128,
        learnable_loss_weighting: bool = False,
        clock: nn.Module | None = None,
        clean_given: bool = False,
    ):
        super().__init__(vocab_size, length, teacher_f=teacher_f, teacher_g=teacher_g)
        self.clean_given = clean_given
        self.clock = DecodingErrorClock(vocab_size) if clock is None else clock
        self.check_teacher("teacher_f", SingleTimeDenoiser, "algo=flm", self.clock, clean_given)
        self.check_teacher("teacher_g", ResidualDenoiser, "algo=flm_distill", self.clock, clean_given)
        if teacher_f is not None and teacher_g is not None:
            _check_same(backbone_of(teacher_f, "algo.teacher_f_path"), teacher_g.base)
        self.backbone = backbone(vocab_size=vocab_size, two_times=True)
        if teacher_g is not None:
            copy_weights(self._pair().base, self.backbone, length, "algo.teacher_f_path")
        self.time_pairs, self.boundary_prob = time_pairs, boundary_prob
        self.loss_weight = LossWeight() if learnable_loss_weighting else None

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        mask = document_mask(batch.documents)
        pair = self._pair(mask)
        pairs = draw_time_pairs(len(batch.tokens), draws, self.time_pairs, self.boundary_prob)
        s, t = self.clock.time(pairs.start), self.clock.time(pairs.end)
        tau_s, tau_t = pairs.start.float(), pairs.end.float()
        tables = (self.backbone.input_table, *pair.tables)
        state = corrupt(batch.tokens, s.float(), tables, draws.rows)
        state = Given(batch.tokens, batch.given, self.clean_given).seen(state, tables)
        with torch.no_grad():
            target = pair(State(state.views[1:]), tau_s, tau_t)
        student = self.denoiser(mask)(State(state.views[:1]), tau_s, tau_t)
        scale = jump_fraction(s, t).float().square()
        return jump_loss(batch, pairs.start, scale, self.loss_weight, lambda weight: squared_error(student, target, weight))

    def denoiser(self, mask: DocumentMask | None = None) -> TwoTimeDenoiser:
        return TwoTimeDenoiser(self.backbone, self.clock, mask, self.clean_given)

    def _pair(self, mask: DocumentMask | None = None) -> ResidualDenoiser:
        f, g = self.teacher("teacher_f"), self.teacher("teacher_g")
        base = g.base if f is None else backbone_of(f, "algo.teacher_f_path")
        return ResidualDenoiser(base, g.residual, self.clock, mask, self.clean_given)


def _check_same(given: nn.Module, kept: nn.Module) -> None:
    """Raises ValueError unless two networks have the same weights: a residual corrects the FLM it was trained beside alone."""
    ours, theirs = given.state_dict(), kept.state_dict()
    if ours.keys() != theirs.keys() or not all(
        ours[name].shape == theirs[name].shape and torch.allclose(ours[name].cpu(), theirs[name].cpu(), rtol=1e-4, atol=1e-6)
        for name in ours
    ):
        raise ValueError(
            "algo.teacher_f_path: another FLM than that which algo.teacher_g_path was trained beside and holds: leave it out"
        )
