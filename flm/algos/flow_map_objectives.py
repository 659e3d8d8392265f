"""Targets that train a two-time denoiser delta_{s,t} for s < t (arXiv 2602.16813, section 4).

Each objective gives a target for delta_{s,t}(x_s) without gradient: a vector over V at every position, chunk by chunk. The
exact flow map, which lies on the simplex, is the fixed point of all three.

B batch, L length, D width, V vocabulary. Arguments are clock times tau; s, u and t are physical times.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from flm.models.attention import forward_mode_attention
from flm.outputs import Combination, Output
from flm.paths.flow_map import TimePairs, semigroup_weight
from flm.paths.gaussian import State, combine, step
from flm.posterior import TokenPosterior, compute_copy, softcapped_logits

Network = Callable[[Tensor, Tensor, Tensor], TokenPosterior]  # (view (B, L, D), tau (B,), tau_to (B,))
Start = Callable[[State, Tensor], Output]  # the denoiser at the start of the jump
Point = Callable[[Output], State]  # the network's view of predicted points of the simplex


class Objective(Protocol):
    """The target of delta for each pair (start, end), from views of the state at the start.

    `denoise` predicts at the start of the jump: the teacher if there is one, else the network itself. `point` embeds a
    predicted point of the simplex as the network's view of it.

    Attributes:
        reads_teacher: whether it calls `denoise`, so that the state needs the teacher's views too.
        forward_mode: whether it takes a forward-mode derivative of the network.
    """

    reads_teacher: bool
    forward_mode: bool

    def __call__(
        self, network: Network, denoise: Start, clock: torch.nn.Module, point: Point, state: State, pairs: TimePairs
    ) -> Output: ...


class Semigroup:
    """lam delta_{s,u}(x) + (1 - lam) delta_{u,t}(X_{s,u} x): two jumps in place of one. Two evaluations."""

    reads_teacher = False
    forward_mode = False

    @torch.no_grad()
    def __call__(self, network, denoise, clock, point, state, pairs):
        s, u, t = (clock.time(tau) for tau in (pairs.start, pairs.middle, pairs.end))
        tau_s, tau_u, tau_t = (tau.float() for tau in (pairs.start, pairs.middle, pairs.end))
        view = State(state.views[:1])
        first = network(view.views[0], tau_s, tau_u)
        halfway = step(view, point(first), s, u)
        second = network(halfway.views[0], tau_u, tau_t)
        share = semigroup_weight(s, u, t)
        return Combination((share, 1 - share), (first, second))


class Lagrangian:
    """D_t(X_{s,t} x) - (1-t)(t-s)/(1-s) d/dt delta_{s,t}(x), projected to the simplex. One derivative, one evaluation."""

    reads_teacher = False
    forward_mode = True

    @torch.no_grad()
    def __call__(self, network, denoise, clock, point, state, pairs):
        s, t = clock.time(pairs.start), clock.time(pairs.end)
        tau_s, tau_t = pairs.start.float(), pairs.end.float()
        view = state.views[0]
        still = (torch.zeros_like(view), torch.zeros_like(tau_s))
        there, motion = derivative(network, (view, tau_s, tau_t), (*still, clock.rate(t).float()))
        landed = step(State((view,)), point(there), s, t)
        endpoint = network(landed.views[0], tau_t, tau_t)
        return Moved(endpoint, there, motion, -(1 - t) * (t - s) / (1 - s))


class Eulerian:
    """D_s(x) + c d/ds delta_{s,t}(x_s), c = (1-s)(t-s)/(1-t), with x_s moving along the flow as s does. Damped.

    c has no limit at t = 1, where one-step generation needs it. So the target is delta plus only eta times the residual, with
    eta = 1 / (1 + c max(1, dtau/ds)). It has the same fixed point and is finite everywhere, and the derivative is followed
    over at most one unit of the clock. One derivative, one evaluation of the denoiser.
    """

    reads_teacher = True
    forward_mode = True

    @torch.no_grad()
    def __call__(self, network, denoise, clock, point, state, pairs):
        s, t = clock.time(pairs.start), clock.time(pairs.end)
        tau_s, tau_t = pairs.start.float(), pairs.end.float()
        view = State(state.views[:1])
        start = denoise(state, tau_s)
        velocity = combine((1 / (1 - s), point(start)), (-1 / (1 - s), view)).views[0]
        rate = clock.rate(s)
        tangents = (velocity, rate.float(), torch.zeros_like(tau_t))
        there, motion = derivative(network, (view.views[0], tau_s, tau_t), tangents)
        gap = (1 - s) * (t - s)
        # eta and eta c with numerator and denominator multiplied by 1 - t
        scale = (1 - t) + gap * rate.clamp_min(1)
        eta, eta_c = (1 - t) / scale, gap / scale
        return Moved(Combination((1 - eta, eta), (there, start)), there, motion, eta_c)


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "semigroup": Semigroup,
    "lagrangian": Lagrangian,
    "eulerian": Eulerian,
}


def derivative(network: Network, point: Sequence[Tensor], tangent: Sequence[Tensor]) -> tuple[TokenPosterior, Tensor]:
    """The prediction at a point and the derivative of its hidden states (B, L, D) along a tangent, by forward mode."""
    frame: list[TokenPosterior] = []

    def hidden(*inputs: Tensor) -> Tensor:
        frame.append(network(*inputs))
        return frame[-1].hidden

    with forward_mode_attention():
        value, motion = torch.func.jvp(hidden, tuple(point), tuple(tangent))
    return replace(frame[-1], hidden=value), motion


@dataclass(frozen=True)
class Moved:
    """base + coefficient * (derivative of a posterior's probabilities), projected onto the simplex.

    Attributes:
        base: a vector over V at every position.
        posterior: whose probabilities are differentiated.
        motion: (B, L, D) derivative of its hidden states.
        coefficient: (B,).
    """

    base: Output
    posterior: TokenPosterior
    motion: Tensor
    coefficient: Tensor

    @property
    def vocab_size(self) -> int:
        return self.posterior.vocab_size

    @property
    def shape(self) -> torch.Size:
        return self.posterior.shape

    @torch.no_grad()
    def chunk(self, part: slice) -> Tensor:
        """Probabilities (n, V) of one slice of the flattened token axis."""
        p = self.posterior
        hidden, motion = (x.reshape(-1, x.shape[-1])[part] for x in (p.hidden, self.motion))
        table = compute_copy(hidden, p.table)
        logits, squashed = softcapped_logits(hidden.to(table.dtype), table, p.bias, p.softcap)
        slope = (motion.to(table.dtype) @ table.T).to(logits.dtype)
        if squashed is not None:
            slope = slope * (1 - squashed.square())
        probability = torch.softmax(logits / p.temperature, -1)
        slope = slope / p.temperature
        change = probability * (slope - torch.linalg.vecdot(probability, slope)[:, None])
        coefficient = self.coefficient.to(change.dtype).repeat_interleave(self.shape[1])[part, None]
        return project_to_simplex(self.base.chunk(part) + coefficient * change)


def project_to_simplex(values: Tensor) -> Tensor:
    """The nearest probability vector to each row (n, V): sparsemax, arXiv 1602.02068 algorithm 1."""
    ordered = values.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    count = torch.arange(1, values.shape[-1] + 1, device=values.device, dtype=values.dtype)
    size = (ordered * count > excess).sum(-1, keepdim=True).clamp_min(1)  # 0 only if a value is NaN
    threshold = excess.gather(-1, size - 1) / size
    return (values - threshold).clamp_min(0)
