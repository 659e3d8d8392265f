"""KL-flow's likelihood bound against its definition as a divergence of jump processes, and where every probability is known."""

import math
from functools import partial

import pytest
import torch
from algos.exact_world import ExactWorld, ToyBackbone
from kl_flow.geodesic_world import ExactBackbone, path_to
from torch import Tensor, nn

import flm.posterior
from flm.algos.algorithm import Batch
from flm.draws import Draws
from flm.kl_flow import geodesic_bound
from flm.kl_flow.geodesic_bound import GRID, GRID_END, SURE, phi, token_terms
from flm.kl_flow.geodesic_state import corrupt
from flm.kl_flow.kl_flow import KLFlow
from flm.paths.gaussian_bound import Plan
from flm.posterior import TokenPosterior

ONE = ExactWorld([0.5, 0.3, 0.2])
TWO = ExactWorld([[0.30, 0.04, 0.06], [0.02, 0.20, 0.03], [0.10, 0.05, 0.20]])


def test_phi_has_its_closed_forms_where_n_is_whole():
    p = torch.tensor([1 - 1e-6, 0.9, 0.5, 0.1, 1e-3, 1e-9, 1e-30], dtype=torch.float64)
    q = 1 - p
    first = (1 + p / q * p.log()) / q  # integral of w / (p + q w)
    second = (0.5 - p * first) / q
    for n, integral in ((1, first), (2, second)):
        got = phi(-p.log(), torch.tensor(math.log1p(1 / n), dtype=torch.float64))
        torch.testing.assert_close(got[1:], ((n + 1) * integral - 1)[1:], rtol=0, atol=1e-10)
        assert got[0].item() == pytest.approx(1e-6 / (n + 2), rel=1e-5)  # to first order in q
    assert not phi(torch.zeros(3, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)).any()


def test_beyond_the_integral_phi_is_not_below_itself_and_between_grid_points_it_is_straight():
    x = torch.linspace(0, 400, 400_001, dtype=torch.float64)
    for signal in (0.3, 7.0):
        s = torch.tensor(signal, dtype=torch.float64)
        k = 1 / -math.expm1(-signal)
        integrand = (1 - (-x).exp()) * (-k * x).exp() / (math.exp(-SURE - 20) + (-x).exp())
        here = phi(torch.tensor([SURE + 20], dtype=torch.float64), s)
        assert k * torch.trapezoid(integrand, x) <= here + 1e-6 <= 1.2 * k * torch.trapezoid(integrand, x) + 2e-6
        step = GRID_END / (GRID - 1)
        ends = phi(torch.arange(0, GRID_END, step, dtype=torch.float64), s)
        middles = phi(torch.arange(0, GRID_END - step, step, dtype=torch.float64) + step / 2, s)
        assert ((ends[1:] + ends[:-1]) / 2 - middles).abs().max() < 1e-5 * max(1, ends.max())


def test_terms_are_the_divergence_of_the_jump_processes(monkeypatch):
    """Per unit of s, n (n + 1) times the integral over jump sizes x of what every token's compensator is off."""
    v, signals = 4, torch.tensor([0.05, 0.7, 2.5], dtype=torch.float64)
    path = path_to(6.0, v)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(v, (3, 5), generator=generator)
    t = signals / (signals + path.gap)
    state = corrupt(tokens, t, path, [1, 2, 3], dtype=torch.float64)
    logits = 3 * torch.randn(3, 5, v, generator=generator, dtype=torch.float64)
    posterior = TokenPosterior(logits, torch.eye(v, dtype=torch.float64))
    rate, surprise = token_terms(posterior, state, path)

    m = torch.cat([m for _, m in state.logits.chunks()]).view(3, 5, v)
    r = (-signals).exp()[:, None, None]
    u = torch.softmax(m, -1)
    log_p = (logits + m.exp() * (1 - r) + v * torch.log(1 - u * (1 - r))).log_softmax(-1)
    p, y = log_p.exp()[..., None], torch.nn.functional.one_hot(tokens, v).double()[..., None]
    n = r[..., None] / (1 - r[..., None])
    top = (40 / n).clamp(max=600)
    x = torch.linspace(0, 1, 30_001, dtype=torch.float64) ** 2 * top
    true = torch.where(y > 0, (-n * x).exp(), (-(n + 1) * x).exp())
    model = (-n * x).exp() * (p + (1 - p) * (-x).exp())
    dense = torch.trapezoid(true * (true / model).log() - true + model, x).sum(-1) * (n * (n + 1))[..., 0, 0]
    torch.testing.assert_close(rate, dense, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(surprise, -log_p.gather(2, tokens[..., None])[..., 0])
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 2 * v)
    for whole, parts in zip((rate, surprise), token_terms(posterior, state, path), strict=True):
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    monkeypatch.setattr(geodesic_bound, "GRID", 2 * v)  # where the vocabulary is large phi comes from a table
    monkeypatch.setattr(geodesic_bound, "GRID_END", 0.02)
    rough, _ = token_terms(posterior, state, path)
    assert (rough - rate).abs().max() > 1e-3
    monkeypatch.undo()
    for name, value in (("GRID", 2049), ("GRID_END", 32.0)):
        monkeypatch.setattr(geodesic_bound, name, value)
    long = TokenPosterior(logits.repeat(1, 110, 1), torch.eye(v, dtype=torch.float64))
    state = corrupt(tokens.repeat(1, 110), t, path, [1, 2, 3], dtype=torch.float64)
    tabled, _ = token_terms(long, state, path)
    monkeypatch.setattr(geodesic_bound, "GRID", 1 << 40)
    torch.testing.assert_close(tabled, token_terms(long, state, path)[0], rtol=0, atol=3e-5)


class Mixed(nn.Module):
    """The exact posterior, with a share of the uniform one."""

    def __init__(self, exact: ExactBackbone, share: float):
        super().__init__()
        self.exact, self.share, self.input_table = exact, share, exact.input_table

    def forward(self, view: Tensor, tau: Tensor) -> TokenPosterior:
        p = self.exact(view, tau).probabilities()
        return TokenPosterior(((1 - self.share) * p + self.share / p.shape[-1]).log(), self.input_table)


def known(world: ExactWorld, share: float = 0.0, end: float = 9.0) -> KLFlow:
    size = world.vocab_size
    path = path_to(end, size)
    algorithm = KLFlow(partial(ToyBackbone, length=world.length), size, world.length, path.max_t, features="log")
    algorithm.backbone = Mixed(ExactBackbone(world, path), share)
    return algorithm


def gap(world: ExactWorld, share: float = 0.0, cut: float | None = None, size: int = 8_000) -> tuple[float, float]:
    """Bound minus entropy, in nats, and its standard error."""
    algorithm, batch = known(world, share), world.batch(size, torch.Generator().manual_seed(1))
    plan = None
    if cut is not None:
        edges = torch.linspace(0, cut, 9, dtype=torch.float64) if cut else torch.zeros(1, dtype=torch.float64)
        plan = Plan(edges, torch.full((len(edges),), 1 / len(edges), dtype=torch.float64))
    excess = algorithm.bound(batch, Draws(2), plan).nats
    entropy = -(world.joint * world.joint.log()).sum()
    return (excess.mean() - entropy).item(), (excess.std() / math.sqrt(size)).item()


@pytest.mark.parametrize("cut", [0.0, 1.0, 4.0, None])
def test_one_token_of_the_exact_posterior_costs_its_entropy_wherever_the_path_is_cut(cut):
    excess, error = gap(ONE, cut=cut)
    assert abs(excess) < 4 * error
    assert error < 0.05


def test_a_point_of_the_simplex_alone_says_less(monkeypatch):
    """Without the size of u: 0.11 nats of docs/kl_flow.md."""
    monkeypatch.setattr(geodesic_bound, "size_evidence", lambda m, signal: torch.zeros_like(m))
    excess, error = gap(ONE)
    assert abs(excess - 0.11) < 4 * error and excess > 4 * error / 2


def test_of_two_tokens_the_gap_is_what_they_say_of_each_other_and_closes_along_the_path():
    marginals = [TWO.joint.sum(1), TWO.joint.sum(0)]
    mutual = sum(-(p * p.log()).sum() for p in marginals) + (TWO.joint * TWO.joint.log()).sum()
    start, error = gap(TWO, cut=0.0)
    assert start == pytest.approx(mutual.item(), abs=4 * error)
    excess, error = gap(TWO, size=20_000)
    assert -4 * error < excess < 4 * error + 0.03  # the size of one position is not told to the other
    assert excess + 4 * error < mutual


def test_a_worse_posterior_has_a_larger_bound():
    gaps = [gap(TWO, share) for share in (0.0, 0.1, 0.3)]
    assert gaps[1][0] > 4 * gaps[1][1]
    assert gaps[2][0] > gaps[1][0] + 4 * gaps[2][1]


def test_it_is_a_bound_of_every_word():
    """Exact: of each word, its own -log p at least. The pilot cuts no lower than that either."""
    algorithm = known(TWO)
    for word in ([0, 0], [1, 0], [2, 1]):
        rows = Batch(torch.tensor([word]).expand(8000, -1), torch.ones(8000, 2))
        nats = algorithm.bound(rows, Draws(4)).nats
        error = 4 * nats.std().item() / math.sqrt(len(nats))
        assert nats.mean().item() == pytest.approx(-TWO.joint[tuple(word)].log().item(), abs=error + 0.05)
    training = [TWO.batch(4000, torch.Generator().manual_seed(3))]
    variant = algorithm.bound_variants(training, Draws(5))["network"]
    nats = algorithm.bound(TWO.batch(8000, torch.Generator().manual_seed(6)), Draws(7), **variant.options).nats
    entropy = -(TWO.joint * TWO.joint.log()).sum()
    assert nats.mean() - entropy > -4 * nats.std() / math.sqrt(len(nats))
    assert nats.mean() - entropy < 0.1
    assert variant.expected * 2 == pytest.approx(nats.mean().item(), abs=0.3)


def test_only_the_uniform_prior_has_one():
    assert KLFlow(partial(ToyBackbone, length=1), 3, 1, 0.5, concentration=0.7).bound_kind is None
