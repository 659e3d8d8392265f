"""Two-stage distillation, first stage: a residual network beside the frozen denoiser (first version of arXiv 2602.16813).

The map adds a second-order term to one Euler step of the teacher f, X_{s,t}(x) = x + (t-s) (f - x)/(1-s) + (t-s)^2/2 g, that is

    delta_{s,t}(x) = f_s(x) + c_{s,t} g_{s,t}(x),    c_{s,t} = (t-s)(1-s)/2,

with g a vector over V without softmax. It is trained to agree with two half jumps of its own:

    | X_{s,t} - X_{u,t} X_{s,u} |^2 = ((t-s)/(1-s))^2 | delta_{s,t} - lam delta_{s,u} - (1-lam) delta_{u,t} |^2.

The state, and with it the V-dimensional noise, cancels: what is left are outputs of f and g, reduced in chunks.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Backbone, Batch, Loss
from flm.algos.flm import SingleTimeDenoiser
from flm.algos.losses import LossWeight, apply_loss_weight, summed
from flm.algos.teacher import Distillation, backbone_of, copy_weights
from flm.draws import Draws
from flm.models.attention import DocumentMask, document_mask
from flm.outputs import Combination, RawOutput
from flm.paths.clock import DecodingErrorClock
from flm.paths.flow_map import PairLaw, draw_time_pairs, semigroup_weight
from flm.paths.gaussian import Given, State, corrupt, step
from flm.posterior import TokenPosterior
from flm.ranges import Count
from flm.samplers.fresh_noise import FlowMapSampler
from flm.samplers.options import POLICY_OPTIONS, Without
from flm.vocabulary_losses import squared_error


class ResidualDenoiser:
    """delta_{s,t} = f_s + c g_{s,t}: two networks, each with its own view of the state."""

    def __init__(
        self,
        base: nn.Module,
        residual: nn.Module,
        clock: nn.Module,
        mask: DocumentMask | None = None,
        clean_given: bool = False,
    ):
        self.base, self.residual, self.clock, self.clean_given = base, residual, clock, clean_given
        self.options = {} if mask is None else {"mask": mask}

    @property
    def tables(self) -> tuple[Tensor, ...]:
        return (self.base.input_table, self.residual.input_table)

    def __call__(self, state: State, tau: Tensor, tau_to: Tensor | None = None) -> Combination:
        tau_to = tau if tau_to is None else tau_to
        s, t = self.clock.time(tau.double()), self.clock.time(tau_to.double())
        return Combination((1.0, correction_scale(s, t)), (self.denoised(state, tau), self.correction(state, tau, tau_to)))

    def denoised(self, state: State, tau: Tensor) -> TokenPosterior:
        """f_s."""
        return self.base(state.views[0], tau, **self.options)

    def correction(self, state: State, tau: Tensor, tau_to: Tensor) -> RawOutput:
        """g_{s,t}."""
        return raw(self.residual(state.views[1], tau, tau_to, **self.options))


class FLMDistill(Distillation):
    """Trains the residual network g.

    Args:
        backbone: called as backbone(vocab_size=V) for f and backbone(vocab_size=V, two_times=True) for g.
        vocab_size: V.
        length: L.
        teacher: a trained FLM of the same backbone, kept inside as f.
        time_pairs: law of the jumps' ends, uniform_gap or uniform_pair.
        boundary_prob: one jump in so many is (0, 1); None for none.
        learnable_loss_weighting: exp(-w) loss + w with a learned w(tau_s).
        clock: None for the decoding-error clock.
        clean_given: as in `FLM`, and the teacher's.
    """

    required_teachers = ("teacher",)
    validation_metric = "jump_squared_error"
    validation_says = "from the teacher: not a likelihood"
    samplers = {"": Without(FlowMapSampler, *POLICY_OPTIONS)}  # a sum of predictions has no logits to shape

    def __init__(
        self,
        backbone: Backbone,
        vocab_size: Count,
        length: Count,
        teacher: Algorithm | None = None,
        time_pairs: PairLaw = "uniform_gap",
        boundary_prob: Count | None = 64,
        learnable_loss_weighting: bool = True,
        clock: nn.Module | None = None,
        clean_given: bool = False,
    ):
        super().__init__(vocab_size, length, teacher=teacher)
        self.clean_given = clean_given
        self.clock = DecodingErrorClock(vocab_size) if clock is None else clock
        self.check_teacher("teacher", SingleTimeDenoiser, "algo=flm", self.clock, clean_given)
        self.base = backbone(vocab_size=vocab_size)
        self.residual = backbone(vocab_size=vocab_size, two_times=True)
        if teacher is not None:
            for network in (self.base, self.residual):
                copy_weights(backbone_of(teacher, "algo.teacher_path"), network, length, "algo.teacher_path")
            for layer in self.residual.output_layer.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.zeros_(layer.weight)
                    nn.init.zeros_(layer.bias)
        self.base.requires_grad_(False).eval()
        self.time_pairs, self.boundary_prob = time_pairs, boundary_prob
        self.loss_weight = LossWeight() if learnable_loss_weighting else None

    def train(self, mode: bool = True) -> "FLMDistill":
        super().train(mode)
        self.base.eval()
        return self

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        pairs = draw_time_pairs(len(batch.tokens), draws, self.time_pairs, self.boundary_prob)
        s, u, t = (self.clock.time(tau) for tau in (pairs.start, pairs.middle, pairs.end))
        tau_s, tau_u, tau_t = (tau.float() for tau in (pairs.start, pairs.middle, pairs.end))
        denoiser, given = self.denoiser(document_mask(batch.documents)), Given(batch.tokens, batch.given, self.clean_given)
        tables = denoiser.tables
        state = corrupt(batch.tokens, s.float(), tables, draws.rows)
        with torch.no_grad():
            still = State(tuple(view.detach() for view in state.views))
            seen = given.seen(still, tables)
            f_s, g_su = denoiser.denoised(seen, tau_s), denoiser.correction(seen, tau_s, tau_u)
            first = Combination((1.0, correction_scale(s, u)), (f_s, g_su))
            halfway = given.seen(step(still, given.point(first, tables), s, u), tables)
            f_u, g_ut = denoiser.denoised(halfway, tau_u), denoiser.correction(halfway, tau_u, tau_t)
            # delta_{s,t} = target solved for g; the factor c that was divided out stands in the weight
            lam, c = semigroup_weight(s, u, t), correction_scale(s, t).clamp_min(1e-9)
            weights = (
                (lam - 1) / c,
                lam * correction_scale(s, u) / c,
                (1 - lam) / c,
                (1 - lam) * correction_scale(u, t) / c,
            )
            target = Combination(weights, (f_s, g_su, f_u, g_ut))
        g_st = denoiser.correction(given.seen(state, tables), tau_s, tau_t)
        scale = (c * jump_fraction(s, t)).float().square()
        return jump_loss(batch, pairs.start, scale, self.loss_weight, lambda weight: squared_error(g_st, target, weight))

    def denoiser(self, mask: DocumentMask | None = None) -> ResidualDenoiser:
        return ResidualDenoiser(self.base, self.residual, self.clock, mask, self.clean_given)


def correction_scale(s: Tensor, t: Tensor) -> Tensor:
    """c_{s,t} = (t-s)(1-s)/2, what g is multiplied by in delta."""
    return (t - s) * (1 - s) / 2


def jump_fraction(s: Tensor, t: Tensor) -> Tensor:
    """(t-s)/(1-s), by which delta enters the jump; s < 1."""
    return (t - s) / (1 - s)


def raw(posterior) -> RawOutput:
    """A network's output without softmax and softcap."""
    return RawOutput(posterior.hidden, posterior.table, posterior.bias)


def jump_loss(batch: Batch, tau: Tensor, scale: Tensor, loss_weight: LossWeight | None, squared: Callable) -> Loss:
    """Scale (B,) times a squared distance of each token, optionally under a learned weight of tau (B,).

    `squared` is called with a constant weight (B, L) and gives the weighted sum and the distance of each token.
    """

    def scaled(weight: Tensor) -> tuple[Tensor, Tensor]:
        total, per_token = squared(weight * scale[:, None])
        return total, per_token * scale[:, None]

    if loss_weight is None:
        total, per_token = scaled(batch.weight)
    else:
        total, per_token = apply_loss_weight(loss_weight(tau.float()), batch.weight, scaled)
    return summed(total, per_token, batch.weight, tau, metric="jump_squared_error")
