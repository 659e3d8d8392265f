"""A variational upper bound on -log p(tokens) from the denoiser of KL-flow. Derived in docs/kl_flow.md.

With n = 1 / (e^s - 1), the numbers u = E e^(s onehot(y)) / (n + 1) of a position are first arrival times: of one process of
rate 1 for every token but y, and of noise of rate n for all tokens. As s grows the noise is thinned out, so u_j stays or jumps
to the next arrival. softmax(log prior + u) is the posterior of a position by itself. The state at s holds all information on y
of the states before it, so the path of u is a latent variable, and given the data it is a jump process. The model replaces
onehot(y) in the rates of these jumps by a denoiser D, up to a last signal S, and decodes there with the probabilities of D.
For every D

    -log p(y)  <=  integral_0^S E b_s(D_s) ds  -  E log D_S[y],                    summed over positions,
    b_s(p)  =  (1 - p_y) (phi(p_y) + 1 - r)  -  r sum_{j != y} p_j phi(p_j),       r = e^-s,
    phi(p)  =  (1 - p) / (1 - r) integral_0^1 w^n (1 - w) / (p + (1 - p) w) dw.

The network reads the simplex point x_t, which is u without its size. Its prediction gets the size added: D = p(token | x_t)
with the exact evidence of the position's own u in place of that of its x_t. Integrals in w are Gauss-Legendre sums in -log w,
whose error is far below the Monte Carlo error. B batch, L length, V vocabulary, N = B * L, n tokens of a chunk.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flm.algos.algorithm import Batch, Bound, BoundVariant
from flm.algos.gaussian_likelihood import DrawnBound
from flm.draws import Draws
from flm.kl_flow.geodesic import Geodesic, log_evidence
from flm.kl_flow.geodesic_state import State, corrupt
from flm.models.attention import document_mask
from flm.paths.gaussian_bound import CELLS, DEFENSIVE, Plan, drawn, piloted
from flm.posterior import TokenPosterior

NODES = 192  # of the integral in w
SURE = 80.0  # largest -log p for the integral; above, phi is concave in it and lies below its linear extrapolation
GRID, GRID_END = 2049, 32.0  # table of phi over -log p, for p_j phi(p_j), which is below 1e-12 beyond the end
_AT_ONCE = 1 << 14  # values of phi computed at once


def phi(surprise: Tensor, signal: Tensor) -> Tensor:
    """phi of p = e^-surprise, surprise >= 0, at signals that broadcast against it; float64."""
    x, weights = (torch.from_numpy(a).to(surprise.device) for a in _gauss())
    surprise, signal = torch.broadcast_tensors(surprise, signal)
    pieces = []
    for some, s in zip(surprise.reshape(-1).split(_AT_ONCE), signal.reshape(-1).split(_AT_ONCE), strict=True):
        within, q = some.clamp(max=SURE), -torch.expm1(-s)
        # with w = e^(-q y) the weight w^n dw is q e^-y dy; less than e^-40 of it is beyond this end
        half = torch.minimum(40 * s.exp(), SURE / q + 40) / 2
        y, p = (x + 1) * half[:, None], (-within).exp()[:, None]
        w = (-q[:, None] * y).exp()
        found = -torch.expm1(-within)[:, None] * (-y).exp() * (1 - w) / (p + (1 - p) * w)
        value, over = found @ weights * half, some > SURE
        if over.any():
            below, edge = (phi(some.new_full((), at), s[over]) for at in (SURE - 1, SURE))
            value[over] += (some[over] - SURE) * (edge - below)
        pieces.append(value)
    return torch.cat(pieces).view(surprise.shape)


@cache
def _gauss() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(NODES)


def size_evidence(m: Tensor, signal: Tensor) -> Tensor:
    """What the size of u adds to the log posterior (n, V) from x_t alone; m (n, V) float64, signal (n, 1)."""
    return m.exp() * -torch.expm1(-signal) - log_evidence(m, signal)


def token_terms(posterior: TokenPosterior, state: State, path: Geodesic) -> tuple[Tensor, Tensor]:
    """b_s and -log D[y] of the tokens of a noised state, each (B, L) in float64, in chunks of tokens."""
    size, length = state.tokens.shape
    signal, flat = path.signal(state.t), state.tokens.reshape(-1)
    tabled = length * posterior.vocab_size > GRID
    if tabled:
        grid = torch.linspace(0, GRID_END, GRID, dtype=torch.float64, device=flat.device)
        table = phi(grid, signal[:, None]).reshape(-1)
    row = torch.arange(size, device=flat.device).repeat_interleave(length)
    hidden = posterior.hidden.flatten(0, 1)
    rate, surprise = (torch.empty(flat.shape, dtype=torch.float64, device=flat.device) for _ in range(2))
    for part, m in state.logits.chunks():
        for inner, logits in replace(posterior, hidden=hidden[part][None]).logit_chunks():
            here = slice(part.start + inner.start, part.start + inner.stop)
            s, token = signal[row[here]][:, None], flat[here, None]
            minus_log_p = -(logits.double() + size_evidence(m[inner].double(), s)).log_softmax(-1)
            surprise[here] = own = minus_log_p.gather(1, token)[:, 0]
            if tabled:
                place = (minus_log_p * ((GRID - 1) / GRID_END)).clamp_(max=GRID - 1 - 1e-9)
                index = place.long() + row[here][:, None] * GRID
                others = table[index].lerp_(table[index + 1], place.frac_())
            else:
                others = phi(minus_log_p, s)
            others *= (-minus_log_p).exp_().scatter_(1, token, 0.0)
            r = (-s[:, 0]).exp()
            rate[here] = -torch.expm1(-own) * (phi(own, s[:, 0]) + 1 - r) - r * others.sum(1)
    return rate.view(size, length), surprise.view(size, length)


class GeodesicLikelihood:
    """Mixin for an Algorithm with the `path` and `clock` of KL-flow, whose `denoiser(mask)` predicts at one time.

    The bound exists only for the uniform prior (concentration 1), under which noise is a first arrival time.
    """

    bound_kind = "variational upper bound"
    path: Geodesic
    clock: Any

    def denoiser(self, mask: Tensor | None = None) -> Any:
        raise NotImplementedError

    @property
    def _end(self) -> float:
        return self.path.signal(self.path.max_t)

    def bound(self, batch: Batch, draws: Draws, plan: Plan | None = None) -> Bound:
        """One draw of the bound, at one point of the path for each sequence. plan None: evenly along the whole path."""
        if plan is None:
            mass = torch.full((CELLS + 1,), (1 - 2 * DEFENSIVE) / CELLS, dtype=torch.float64)
            mass[-1] = 2 * DEFENSIVE
            plan = Plan(self._edges(), mass)
        terms = partial(self._terms, batch, draws)
        return DrawnBound(*drawn(plan, terms, batch.scored, draws.stratified(len(batch.tokens)).cpu(), self._end, self._time))

    def bound_variants(self, training: Sequence[Batch], draws: Draws, **options: Any) -> dict[str, BoundVariant]:
        """The bound, with its cut and draws fitted on the training batches; without any, even draws along the whole path."""
        if not training:
            return {"network": BoundVariant()}
        pilot = piloted(self._edges(), [(partial(self._terms, batch, draws), batch.scored) for batch in training], draws)
        pilot = replace(pilot, time=self._time)
        return {"network": BoundVariant({"plan": pilot.plan()}, pilot.bounds().min().item(), pilot.rows())}

    @torch.no_grad()
    def _terms(self, batch: Batch, draws: Draws, signal: Tensor) -> tuple[Tensor, Tensor]:
        denoiser = self.denoiser(document_mask(batch.documents))
        t = self._time(signal).to(batch.tokens.device)
        state = corrupt(batch.tokens, t, self.path, draws.rows.seeds(len(t)), batch.weight == 0, denoiser.dtype)
        return token_terms(denoiser(state, self.clock.tau(t).float()), state, self.path)

    def _edges(self) -> Tensor:
        return torch.linspace(0, self._end, CELLS + 1, dtype=torch.float64)

    def _time(self, signal: Any) -> Any:
        return signal / (signal + self.path.gap)
