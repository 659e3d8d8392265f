"""A variational upper bound on -log p(tokens) from a denoiser of the Gaussian path. Derived in docs/likelihood.md.

Let m = t / (1 - t) be the amplitude ratio (so SNR = m^2) and Y = t x_t / (1 - t)^2 the cumulative evidence. At a position of
token y, Y = m^2 onehot(y) + m n is a Brownian motion with drift onehot(y) in the time m^2. The model replaces the drift by a
denoiser D up to a last ratio M, and decodes there with the probabilities of D. For every D

    -log p(y)  <=  integral_0^M m E|onehot(y) - D_m|^2 dm  -  E log D_M[y],        summed over positions.

The prior term is zero. The integral and the decoding are estimated together: each draw is either one m or the decoding.

D may read any part of the path up to m. With an evidence share s, the network reads Y at m sqrt(1 - s) through its table. The
rest, s m^2 onehot(y) + m sqrt(s) n', is independent of that and is added to its logits. So this share of the evidence does not
pass through a table, and none is counted twice. It is drawn for one chunk of tokens at a time.

B batch, L length, V vocabulary, K cells.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flm.draws import Draws
from flm.paths.gaussian import corrupt
from flm.posterior import TokenPosterior

CELLS = 32  # cells of the proposal, of equal width in m
BUCKETS = 8  # parts of the path in reports
Terms = Callable[[Tensor], tuple[Tensor, Tensor]]  # maps points (B,) of a path to integrand and -log D[y], each (B, L)
DEFENSIVE = 0.1  # share of draws that ignore the pilot, so that no weight is large where the pilot was wrong


@dataclass(frozen=True)
class GaussianDenoiser:
    """The model that is bounded.

    Attributes:
        predict: maps (state, tau) to D_tau, or (state, tau, tau_to) to delta of a flow map.
        table: through which it reads x_t.
        clock: of tau.
        vocab_size: V.
    """

    predict: Callable[..., TokenPosterior]
    table: Tensor
    clock: Any
    vocab_size: int


def largest_ratio(vocab_size: int) -> float:
    """The m above which x_t alone determines the token: the arg-max of its V entries is wrong with probability below 1e-6."""
    return 2 * math.sqrt(math.log(vocab_size) + 15)


@dataclass(frozen=True)
class Plan:
    """How draws are distributed over cells of m and the decoding.

    Attributes:
        edges: (K + 1,) ratios from 0 to M, float64 on the CPU; K may be 0.
        mass: (K + 1,) positive probabilities of the K cells, in which m is uniform, and of the decoding.
        evidence: share s in [0, 1) of the evidence that is added to the logits.
    """

    edges: Tensor
    mass: Tensor
    evidence: float = 0.0

    @classmethod
    def even(cls, vocab_size: int, evidence: float = 0.0) -> "Plan":
        """The whole path, with m uniform."""
        spread = torch.full((CELLS + 1,), 1 / CELLS, dtype=torch.float64) * (1 - DEFENSIVE)
        spread[-1] = DEFENSIVE
        return cls(_edges(vocab_size), spread, evidence)

    def place(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For uniform u (B,): ratios m, weights 1 / density (1 / mass of the decoding), and whether each is the decoding."""
        above = self.mass.cumsum(0)
        cell = torch.searchsorted(above, u, right=True).clamp(max=len(self.mass) - 1)
        within = ((u - above[cell] + self.mass[cell]) / self.mass[cell]).clamp(0, 1)
        width = torch.cat([self.edges.diff(), self.edges.new_zeros(1)])[cell]
        decoding = cell == len(self.mass) - 1
        return self.edges[cell] + within * width, torch.where(decoding, 1.0, width) / self.mass[cell], decoding


@torch.no_grad()
def estimate(
    denoiser: GaussianDenoiser, tokens: Tensor, plan: Plan, draws: Draws, scored: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """One unbiased draw of the bound of tokens (B, L), for the scored ones (B, L) bool; None: for all.

    The denoiser may read tokens that are not scored. The noise of given tokens does not depend on the scored ones, so a bound
    given that noise, averaged over it, is a bound given the tokens.

    Returns:
        Nats (B,) float64; nats (B,) of each part of the path, which add up to them; and which part was drawn, (B,) bool each.
    """
    scored = torch.ones_like(tokens, dtype=torch.bool) if scored is None else scored
    terms = partial(_terms, denoiser, tokens, plan.evidence, draws)
    return drawn(plan, terms, scored, draws.stratified(len(tokens)).cpu(), largest_ratio(denoiser.vocab_size), _time)


def drawn(
    plan: Plan, terms: Terms, scored: Tensor, u: Tensor, span: float, time: Callable[[Any], Any]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """As `estimate`, for any integral along a path with a decoding at its end.

    Args:
        scored: (B, L) bool.
        u: (B,) uniform in [0, 1).
        span: the last point of the whole path, which is divided evenly into the reported parts.
        time: t of a point, for their names.
    """
    device = scored.device
    point, weight, decoding = plan.place(u)
    inside, surprise = ((values * scored).sum(1) for values in terms(point))
    nats = torch.where(decoding.to(device), surprise, inside) * weight.to(device)
    bounds = torch.linspace(0, span, BUCKETS + 1, dtype=torch.float64)
    bucket = torch.bucketize(point, bounds[1:-1], right=True)
    found, last = {}, plan.edges[-1]
    for k, (low, high) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        if low < last:
            found[f"t {time(low):.3f} to {time(min(high, float(last))):.3f}"] = ((bucket == k) & ~decoding).to(device)
    found[f"decoding at t {time(float(last)):.3f}"] = decoding.to(device)
    return nats, {name: nats * here for name, here in found.items()}, found


def _time(m):
    return m / (1 + m)


@dataclass(frozen=True)
class Pilot:
    """The integrand along the whole path, measured on other text than will be evaluated.

    Attributes:
        edges: (K + 1,) edges of the cells in m.
        integrand: (K,) mean of m |onehot - D|^2, in nats per token and unit of m.
        spread: (K,) its root mean square over sequences.
        surprise: (K,) mean of -log D[y] in nats per token.
        evidence: as in `Plan`.
        time: t of a point.
    """

    edges: Tensor
    integrand: Tensor
    spread: Tensor
    surprise: Tensor
    evidence: float = 0.0
    time: Callable[[Any], Any] = _time

    def bounds(self) -> Tensor:
        """The bound, in nats per token, if the path ends at each of the edges (K + 1,)."""
        decoding = torch.cat([self.surprise[:1], (self.surprise[1:] + self.surprise[:-1]) / 2, self.surprise[-1:]])
        integral = (self.integrand * self.edges.diff()).cumsum(0)
        return torch.cat([integral.new_zeros(1), integral]) + decoding

    def plan(self) -> Plan:
        """The path cut where the bound is least, with draws in proportion to each cell's contribution."""
        bounds = self.bounds()
        cut = int(bounds.argmin())
        decoding = self.surprise[max(cut - 1, 0)].expand(1)
        mass = torch.cat([self.spread[:cut] * self.edges.diff()[:cut], decoding])
        floor = torch.full_like(mass, 0.5 / max(cut, 1))
        floor[-1] = 0.5 if cut else 1.0
        return Plan(self.edges[: cut + 1], (1 - DEFENSIVE) * mass / mass.sum() + DEFENSIVE * floor, self.evidence)

    def rows(self) -> list[dict[str, float]]:
        """A row of plain values for each cell; nats are per token."""
        columns = {
            "t_from": self.time(self.edges[:-1]),
            "t_to": self.time(self.edges[1:]),
            "contribution_nats": self.integrand * self.edges.diff(),
            "surprise_nats": self.surprise,
            "bound_if_cut_at_t_to_nats": self.bounds()[1:],
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]


@torch.no_grad()
def measure(batches: Sequence[tuple[GaussianDenoiser, Tensor, Tensor]], draws: Draws, evidence: float = 0.0) -> Pilot:
    """A pilot from one draw for each sequence.

    Args:
        batches: for each batch its denoiser, tokens (B, L), and which of them are scored (B, L) bool.

    Raises:
        ValueError: there are fewer sequences than cells.
    """
    parts = [(partial(_terms, denoiser, tokens, evidence, draws), scored) for denoiser, tokens, scored in batches]
    return replace(piloted(_edges(batches[0][0].vocab_size), parts, draws), evidence=evidence)


def piloted(edges: Tensor, batches: Sequence[tuple[Terms, Tensor]], draws: Draws) -> Pilot:
    """A pilot of any integral along a path with these edges.

    Args:
        batches: for each batch its terms, and which positions are scored (B, L) bool.

    Raises:
        ValueError: there are fewer sequences than cells.
    """
    count = sum(len(scored) for _, scored in batches)
    if count < CELLS:
        raise ValueError(f"eval.pilot_draws={count} is too few: at least {CELLS}, or 0 for no pilot")
    cell = torch.arange(count) % CELLS
    points = edges[cell] + draws.uniform(count, dtype=torch.float64).cpu() * edges.diff()[cell]
    integrand, surprise, start = [], [], 0
    for terms, scored in batches:
        share = scored.double() / scored.sum(1, keepdim=True).clamp_min(1)
        inside, surprises = ((values * share).sum(1).cpu() for values in terms(points[start : start + len(scored)]))
        integrand.append(inside)
        surprise.append(surprises)
        start += len(scored)

    def by_cell(values: Tensor) -> Tensor:
        return torch.zeros(CELLS, dtype=torch.float64).index_add_(0, cell, values) / cell.bincount(minlength=CELLS)

    values = torch.cat(integrand)
    return Pilot(edges, by_cell(values), by_cell(values**2).sqrt(), by_cell(torch.cat(surprise)))


def token_errors(
    posterior: TokenPosterior, tokens: Tensor, precision: Tensor | None = None, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """|onehot(y) - p|^2 and -log p[y] of tokens (B, L), each (B, L) in float64, computed in chunks of tokens.

    With a precision (B,), evidence about each token through fresh noise, precision * onehot(y) + sqrt(precision) n, is first
    added to the logits.
    """
    flat = tokens.reshape(-1)
    squared, surprise = (torch.empty(flat.shape, dtype=torch.float64, device=flat.device) for _ in range(2))
    if precision is not None:
        precision = precision.repeat_interleave(tokens.shape[1])
    for part, logits in posterior.logit_chunks():
        index = flat[part, None]
        if precision is not None:
            gain = precision[part, None].to(logits.dtype)
            noise = torch.randn(logits.shape, generator=generator, device=logits.device, dtype=logits.dtype)
            logits.addcmul_(noise, gain.sqrt()).scatter_add_(1, index, gain)
        log_p = logits.log_softmax(-1)
        surprise[part] = -log_p.gather(1, index)[:, 0].double()
        # p - onehot entry by entry: 1 - 2 p_y + sum p^2 would lose its digits where the token is nearly certain
        error = log_p.exp_()
        error.scatter_add_(1, index, error.new_full((), -1.0).expand(index.shape))
        squared[part] = torch.linalg.vecdot(error, error).double()
    return squared.view(tokens.shape), surprise.view(tokens.shape)


def _terms(denoiser: GaussianDenoiser, tokens: Tensor, evidence: float, draws: Draws, m: Tensor) -> tuple[Tensor, Tensor]:
    """m |onehot(y) - D|^2 and -log D[y] at ratios m (B,), each (B, L)."""
    seen = _time(m * math.sqrt(1 - evidence)).to(tokens.device)
    tau, dtype = denoiser.clock.tau(seen), denoiser.table.dtype
    state = corrupt(tokens, seen.to(dtype), (denoiser.table,), draws.rows)
    posterior = denoiser.predict(state, tau.to(dtype))
    precision = (evidence * m**2).to(tokens.device) if evidence else None
    squared, surprise = token_errors(posterior, tokens, precision, draws.local)
    return m.to(squared)[:, None] * squared, surprise


def _edges(vocab_size: int) -> Tensor:
    return torch.linspace(0, largest_ratio(vocab_size), CELLS + 1, dtype=torch.float64)
