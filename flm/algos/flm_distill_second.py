"""Two-stage distillation, second stage: denoiser and residual compressed into one softmax network.

The student's jump is trained to equal that of the pair (f, g) of the first stage; with the same start both times, the state
cancels and |X^{fg}_{s,t} - X_{s,t}|^2 = ((t-s)/(1-s))^2 |delta^{fg}_{s,t} - delta_{s,t}|^2 (first version of arXiv 2602.16813).
"""

import torch
from torch import nn

from flm.algos.algorithm import Algorithm, Batch, FlowMapBackbone, Loss
from flm.algos.flm_distill import ResidualDenoiser, jump_fraction, jump_loss
from flm.algos.fmlm import TwoTimeDenoiser
from flm.algos.loss_weight import LossWeight
from flm.algos.teacher import Distillation, backbone_of, copy_weights
from flm.draws import Draws
from flm.paths.clock import DecodingErrorClock
from flm.paths.flow_map import PairLaw, draw_time_pairs
from flm.paths.gaussian import State, corrupt
from flm.ranges import Count
from flm.samplers.flow_map import FlowMapSampler
from flm.vocabulary_losses import squared_error


class FLMDistillSecond(Distillation):
    """Trains one two-time softmax network to jump as f and g together do.

    Args:
        backbone: called as backbone(vocab_size=V, two_times=True).
        vocab_size: V.
        length: L.
        teacher_f: the FLM of the first stage; None takes the copy inside teacher_g.
        teacher_g: the model of the first stage.
        time_pairs: law of the jumps' ends, uniform_gap or uniform_pair.
        boundary_prob: one jump in so many is (0, 1); None for none.
        learnable_loss_weighting: exp(-w) loss + w with a learned w(tau_s).
        clock: None for the decoding-error clock.
    """

    validation_metric = "jump_squared_error"
    validation_says = "from the teacher: not a likelihood"
    samplers = {"": FlowMapSampler}

    def __init__(
        self,
        backbone: FlowMapBackbone,
        vocab_size: Count,
        length: Count,
        teacher_f: Algorithm | None = None,
        teacher_g: Algorithm | None = None,
        time_pairs: PairLaw = "uniform_gap",
        boundary_prob: Count | None = 128,
        learnable_loss_weighting: bool = False,
        clock: nn.Module | None = None,
    ):
        super().__init__(vocab_size, length, teacher_f=teacher_f, teacher_g=teacher_g)
        if teacher_g is not None and not hasattr(teacher_g, "residual"):
            raise ValueError("algo.teacher_g_path: needs a checkpoint of algo=flm_distill")
        self.clock = DecodingErrorClock(vocab_size) if clock is None else clock
        self.check_clock(self.clock)
        self.backbone = backbone(vocab_size=vocab_size, two_times=True)
        if teacher_g is not None:
            copy_weights(self._pair().base, self.backbone, length, "algo.teacher_f_path")
        self.time_pairs, self.boundary_prob = time_pairs, boundary_prob
        self.loss_weight = LossWeight() if learnable_loss_weighting else None

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        pair = self._pair()
        pairs = draw_time_pairs(len(batch.tokens), draws, self.time_pairs, self.boundary_prob)
        s, t = self.clock.time(pairs.start), self.clock.time(pairs.end)
        tau_s, tau_t = pairs.start.float(), pairs.end.float()
        state = corrupt(batch.tokens, s.float(), (self.backbone.input_table, *pair.tables), draws.local)
        with torch.no_grad():
            target = pair(State(state.views[1:]), tau_s, tau_t)
        student = self.backbone(state.views[0], tau_s, tau_t)
        scale = jump_fraction(s, t).float().square()
        return jump_loss(batch, pairs.start, scale, self.loss_weight, lambda weight: squared_error(student, target, weight))

    def denoiser(self) -> TwoTimeDenoiser:
        return TwoTimeDenoiser(self.backbone, self.clock)

    def _pair(self) -> ResidualDenoiser:
        f, g = self.teacher("teacher_f"), self.teacher("teacher_g")
        if g is None:
            raise ValueError("algo.teacher_g_path is not set: the second stage learns from a checkpoint of algo=flm_distill")
        base = g.base if f is None else backbone_of(f, "algo.teacher_f_path")
        return ResidualDenoiser(base, g.residual, self.clock)
