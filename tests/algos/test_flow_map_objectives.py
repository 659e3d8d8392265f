"""The targets of the three objectives: exact maps are their fixed points, and each equals its dense formula."""

from functools import partial

import pytest
import torch
from algos.dense_flow_map import column, dense, dense_target, nearest_on_simplex, rough, small_dit
from algos.exact_world import ExactBackbone, correlated, single_token, three_tokens

import flm.posterior
from flm.algos.flow_map_objectives import OBJECTIVES, Moved, derivative, project_to_simplex
from flm.draws import Draws
from flm.paths.clock import DecodingErrorClock
from flm.paths.flow_map import TimePairs, draw_time_pairs
from flm.paths.gaussian import State, expected
from flm.posterior import TokenPosterior

WORLDS = {"one token": single_token(), "two positions": correlated(), "three tokens": three_tokens()}


def everything(output):
    """All values of an output (B, L, V)."""
    return output.chunk(slice(0, output.shape.numel())).view(*output.shape, -1)


def point_of(network):
    return partial(expected, tables=(network.input_table,))


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_exact_map_is_the_fixed_point(objective, world):
    """Evaluated with the exact network, each target is the network's own prediction, all the way to t = 1."""
    drawn = draw_time_pairs(200, Draws(4), boundary_prob=20)
    # where m is cut off in the exact world; the jumps all the way stay
    pairs = TimePairs(*(torch.where(drawn.end == 1, x, 0.9 * x) for x in (drawn.start, drawn.middle, drawn.end)))
    state = State((world.state(pairs.start, torch.Generator().manual_seed(0)),))
    network = ExactBackbone(world, nodes=100)
    exact = everything(network(state.views[0], pairs.start, pairs.end))

    def denoise(state, tau):
        return network(state.views[0], tau)

    target = everything(OBJECTIVES[objective]()(network, denoise, world.clock, point_of(network), state, pairs))
    torch.testing.assert_close(target, exact, rtol=0, atol=1e-4)
    # neither end of the jump alone would do
    assert (exact - everything(network(state.views[0], pairs.start))).abs().max() > 0.3


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_wrong_map_is_no_fixed_point(objective):
    """The denoiser at the start in place of the map, one Euler step: the targets must call for something else."""
    world = correlated()
    tau = torch.full((50,), 0.1, dtype=torch.float64)
    pairs = TimePairs(tau, tau + 0.4, tau + 0.8)
    state = State((world.state(tau, torch.Generator().manual_seed(0)),))
    exact = ExactBackbone(world)

    def network(view, tau, tau_to):
        return exact(view, tau)

    def denoise(state, tau):
        return exact(state.views[0], tau)

    target = everything(OBJECTIVES[objective]()(network, denoise, world.clock, point_of(exact), state, pairs))
    truth = everything(exact(state.views[0], pairs.start, pairs.end))
    frozen = everything(exact(state.views[0], pairs.start))
    assert (target - frozen).abs().mean() > 0.02
    assert (target - truth).abs().mean() < (frozen - truth).abs().mean()


# Against a network that is nobody's fixed point -----------------------------------------------------------------------

V, L, B = 9, 3, 6


def rough_dit():
    torch.manual_seed(0)
    return rough(small_dit(V, L)(vocab_size=V, two_times=True).double().eval())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_target_equals_the_dense_formula(objective, monkeypatch):
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 4 * V)
    network, clock = rough_dit(), DecodingErrorClock(V)
    pairs = draw_time_pairs(B, Draws(0), boundary_prob=None)
    x = torch.randn(B, L, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    view = State((x @ network.input_table,))

    def denoise(state, tau):
        return network(state.views[0], tau, tau)

    got = everything(OBJECTIVES[objective]()(network, denoise, clock, point_of(network), view, pairs))
    assert not got.requires_grad
    want = dense_target(objective, network, clock, x, pairs)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert (got - dense(network, x, pairs.start, pairs.end)).abs().max() > 0.02


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_targets_are_finite_points_of_the_simplex_up_to_the_boundary(objective, dtype):
    network = rough_dit().to(dtype)
    start = torch.tensor([0, 0, 0.5, 0.999, 0.3, 0.3, 0], dtype=torch.float64)
    end = torch.tensor([1, 0.9999999, 1, 1, 0.3, 0.3000001, 0], dtype=torch.float64)
    pairs = TimePairs(start, (start + end) / 2, end)
    view = State((torch.randn(7, L, 8, generator=torch.Generator().manual_seed(1), dtype=dtype),))

    def denoise(state, tau):
        return network(state.views[0], tau, tau)

    objective = OBJECTIVES[objective]()
    target = everything(objective(network, denoise, DecodingErrorClock(V), point_of(network), view, pairs))
    assert target.min() >= 0
    torch.testing.assert_close(target.sum(-1), torch.ones(7, L, dtype=dtype), rtol=0, atol=1e-5)


def test_derivative_equals_finite_differences_in_both_times_and_the_view():
    network = rough_dit()
    generator = torch.Generator().manual_seed(2)
    view, direction = torch.randn(2, B, L, 8, generator=generator, dtype=torch.float64)
    tau, tau_to, rate, rate_to = torch.rand(4, B, generator=generator, dtype=torch.float64)
    zero, still = torch.zeros_like(tau), torch.zeros_like(view)
    tangents = {"view": (direction, zero, zero), "start": (still, rate, zero), "end": (still, zero, rate_to)}
    tangents["all"] = (direction, rate, rate_to)
    for tangent in tangents.values():
        posterior, motion = derivative(network, (view, tau, tau_to), tangent)
        assert torch.equal(posterior.hidden, network(view, tau, tau_to).hidden)
        h = 1e-5
        ahead, behind = (
            network(*(x + sign * h * v for x, v in zip((view, tau, tau_to), tangent, strict=True))).hidden for sign in (1, -1)
        )
        torch.testing.assert_close(motion, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)
        assert motion.abs().max() > 1e-2


def test_moved_equals_the_dense_derivative_in_chunks_of_any_size():
    """base + coefficient * d/dh softmax(softcap(hidden + h motion) / temperature), by central differences."""
    generator = torch.Generator().manual_seed(3)
    hidden, motion = torch.randn(2, B, L, 5, generator=generator, dtype=torch.float64)
    table, bias = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((V, 5), (V,)))
    coefficient = torch.rand(B, generator=generator, dtype=torch.float64)
    base = TokenPosterior(torch.randn(B, L, 5, generator=generator, dtype=torch.float64), table)
    for softcap, temperature in ((None, 1.0), (2.0, 0.7)):
        posterior = TokenPosterior(hidden, table, bias, softcap, temperature)

        def probabilities(h, posterior=posterior):
            return TokenPosterior(hidden + h * motion, table, bias, posterior.softcap, posterior.temperature).probabilities()

        change = (probabilities(1e-5) - probabilities(-1e-5)) / 2e-5
        want = nearest_on_simplex(base.probabilities() + column(coefficient) * change)
        moved = Moved(base, posterior, motion, coefficient)
        for size in (1, 4, B * L):
            got = torch.cat([moved.chunk(slice(i, i + size)) for i in range(0, B * L, size)])
            torch.testing.assert_close(got.view(B, L, V), want, rtol=0, atol=1e-8)


def test_projection_is_the_nearest_point_of_the_simplex():
    values = 2 * torch.randn(200, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    values[:20] = values[:20].softmax(-1)
    got = project_to_simplex(values)
    torch.testing.assert_close(got, nearest_on_simplex(values), rtol=0, atol=1e-10)
    torch.testing.assert_close(got[:20], values[:20], rtol=0, atol=1e-12)  # already there
    # no vertex, nor any point towards one, is nearer (the optimality condition of a convex problem)
    assert ((values - got) @ torch.eye(7, dtype=torch.float64) - ((values - got) * got).sum(-1, keepdim=True)).max() < 1e-10
    assert got[20:].eq(0).any()
    odd = torch.tensor([[3.0, 3.0, 3.0, 3.0], [float("nan"), 0.0, 1.0, 2.0]])
    torch.testing.assert_close(project_to_simplex(odd)[0], torch.full((4,), 0.25))
    assert project_to_simplex(odd)[1].isnan().all()  # the loss shows it; no index error in its place
