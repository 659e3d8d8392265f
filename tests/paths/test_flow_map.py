"""The two-time algebra against exactly solvable languages, and the law of the jumps' times."""

import pytest
import torch
from algos.exact_world import correlated, single_token, three_tokens

from flm.draws import Draws
from flm.paths.flow_map import PAIR_LAWS, draw_time_pairs, semigroup_weight, uniform_gap, uniform_pair
from flm.paths.gaussian import State, step

WORLDS = {"two positions": correlated("identity"), "three tokens": three_tokens()}


@pytest.fixture(params=WORLDS)
def world(request):
    return WORLDS[request.param]


def times(count=200, latest=0.85, seed=0):
    """s <= u <= t, physical, and a generator for the state."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.rand(3, count, generator=generator, dtype=torch.float64) * latest
    return *ends.sort(0).values, generator


def delta(world, x, s, t, nodes=150):
    return world.log_delta(x, s / (1 - s), t / (1 - t), nodes).exp()


def jump(x, target, s, t):
    return step(State((x,)), State((target,)), s, t).views[0]


def integrate_in_t(world, x, s, t, nodes=400):
    """X_{s,t}(x) by Runge-Kutta on dx/dt = (D_t(x) - x)/(1-t) itself."""

    def velocity(x, time):
        return (world.denoise(x, time).exp() - x) / (1 - time)[:, None, None]

    h = (t - s) / nodes
    for i in range(nodes):
        now, w = s + i * h, h[:, None, None]
        k1 = velocity(x, now)
        k2 = velocity(x + w / 2 * k1, now + h / 2)
        k3 = velocity(x + w / 2 * k2, now + h / 2)
        k4 = velocity(x + w * k3, now + h)
        x = x + w / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def test_jump_is_the_integrated_flow(world):
    s, _, t, generator = times()
    x = world.state(s, generator)
    torch.testing.assert_close(jump(x, delta(world, x, s, t), s, t), integrate_in_t(world, x, s, t), rtol=0, atol=1e-7)


def test_jump_in_closed_form():
    """One position of two tokens: the flow keeps quantiles of x_1 - x_2, a mixture of two Gaussians, and moves
    x_1 + x_2 along a straight line."""
    p, world = 0.3, single_token(0.3, "identity")
    s, _, t, generator = times()
    x = world.state(s, generator)
    landed = jump(x, delta(world, x, s, t), s, t)[:, 0]

    def quantile(difference, time):
        spread = 2**0.5 * (1 - time)
        high, low = (torch.special.ndtr((difference - mean) / spread) for mean in (time, -time))
        return p * high + (1 - p) * low

    before, after = (quantile(y[:, 0] - y[:, 1], time) for y, time in ((x[:, 0], s), (landed, t)))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-7)
    torch.testing.assert_close(landed.sum(-1), (1 - t) / (1 - s) * x.sum((1, 2)) + (t - s) / (1 - s), rtol=0, atol=1e-12)


def test_semigroup_identity(world):
    s, u, t, generator = times()
    x = world.state(s, generator)
    first = delta(world, x, s, u)
    second = delta(world, jump(x, first, s, u), u, t)
    share = semigroup_weight(s, u, t)[:, None, None]
    torch.testing.assert_close(share * first + (1 - share) * second, delta(world, x, s, t), rtol=0, atol=1e-8)
    assert (first - second).abs().max() > 0.1  # so that a wrong weight would show


def test_semigroup_weight_composes_jumps():
    """With any two targets, two jumps are one jump to their mixture: an identity between coefficients."""
    s, u, t, generator = times(500, 1.0)
    x, a, b = torch.randn(3, 500, 1, 3, generator=generator, dtype=torch.float64)
    share = semigroup_weight(s, u, t)
    twice = jump(jump(x, a, s, u), b, u, t)
    mixture = share[:, None, None] * a + (1 - share[:, None, None]) * b
    torch.testing.assert_close(jump(x, mixture, s, t), twice, rtol=1e-9, atol=1e-9)
    assert share.min() >= 0 and share.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_semigroup_weight_at_the_ends(dtype):
    s, u, t = torch.tensor([[0, 0.5, 1], [0.2, 0.2, 0.7], [0.2, 0.7, 0.7], [0.4, 0.4, 0.4], [0, 0, 1e-30]], dtype=dtype).T
    assert semigroup_weight(s, u, t).tolist() == pytest.approx([0, 0, 1, 0, 0])


def test_lagrangian_identity(world):
    """delta = D_t(X) - (1-t)(t-s)/(1-s) d/dt delta."""
    s, _, t, generator = times()
    x, h = world.state(s, generator), 1e-4
    motion = (delta(world, x, s, t + h) - delta(world, x, s, t - h)) / (2 * h)
    exact = delta(world, x, s, t)
    endpoint = world.denoise(jump(x, exact, s, t), t).exp()
    coefficient = ((1 - t) * (t - s) / (1 - s))[:, None, None]
    torch.testing.assert_close(endpoint - coefficient * motion, exact, rtol=0, atol=1e-5)
    assert (coefficient * motion).abs().max() > 0.05


def test_eulerian_identity(world):
    """delta = D_s + (1-s)(t-s)/(1-t) d/ds delta along the flow of x."""
    s, _, t, generator = times()
    x, h = world.state(s, generator), 1e-4
    start = world.denoise(x, s).exp()
    velocity = (start - x) / (1 - s)[:, None, None]
    motion = (delta(world, x + h * velocity, s + h, t) - delta(world, x - h * velocity, s - h, t)) / (2 * h)
    coefficient = ((1 - s) * (t - s) / (1 - t))[:, None, None]
    torch.testing.assert_close(start + coefficient * motion, delta(world, x, s, t), rtol=0, atol=1e-5)
    assert (coefficient * motion).abs().max() > 0.05


def test_delta_is_on_the_simplex_and_a_jump_of_zero_length_stays(world):
    s, _, t, generator = times()
    x = world.state(s, generator)
    point = delta(world, x, s, t)
    assert point.min() >= 0
    torch.testing.assert_close(point.sum(-1), torch.ones_like(point[..., 0]), rtol=0, atol=1e-12)
    still = delta(world, x, s, s)
    torch.testing.assert_close(still, world.denoise(x, s).exp(), rtol=0, atol=1e-12)
    torch.testing.assert_close(jump(x, still, s, s), x, rtol=0, atol=0)


# The law of the times -------------------------------------------------------------------------------------------------


def gather(law, count, shares, **options):
    pairs = [law(count, Draws(3, step=7, share=k, num_shares=shares), **options) for k in range(shares)]
    return [torch.cat(column) for column in zip(*pairs, strict=True)]


def one_in_each_cell(points):
    return torch.equal((points * len(points)).floor().long().sort().values, torch.arange(len(points)))


def test_times_are_stratified_over_the_global_batch():
    start, end = gather(uniform_gap, 16, 4)
    gap = end - start
    assert one_in_each_cell(gap) and one_in_each_cell(start / (1 - gap))
    # gap and start are paired at random: then the ends have covariance 1/144 and variance 7/144
    assert abs(torch.corrcoef(torch.stack(gather(uniform_gap, 2000, 1)))[0, 1] - 1 / 7) < 0.08
    low, high = gather(uniform_pair, 16, 4)
    assert (low <= high).all() and not one_in_each_cell(low)


@pytest.mark.parametrize("law", PAIR_LAWS)
def test_law_of_the_ends(law):
    start, end = PAIR_LAWS[law](40_000, Draws(0))
    gap = end - start
    assert start.min() >= 0 and gap.min() >= 0 and end.max() <= 1
    # gap ~ U(0,1) against the gap of two uniforms, of density 2 (1 - gap)
    cdf = gap.sort().values if law == "uniform_gap" else 1 - (1 - gap.sort().values) ** 2
    uniform = (torch.arange(40_000) + 0.5) / 40_000
    assert (cdf - uniform).abs().max() < 1.63 / 200  # Kolmogorov-Smirnov at 1%
    # given the gap, the start is uniform on what is left
    assert ((start / (1 - gap)).sort().values - uniform).abs().max() < 1.63 / 200


@pytest.mark.parametrize("count", [1, 5, 32, 48, 100])
def test_boundary_pairs_keep_their_rate_for_every_batch_size(count):
    steps = 600
    number = 0
    for i in range(steps):
        pairs = draw_time_pairs(count, Draws(1, step=i), boundary_prob=32)
        whole = (pairs.start == 0) & (pairs.end == 1)
        assert (pairs.middle[whole] == 0.5).all()
        assert abs(whole.sum().item() - count / 32) < 1
        number += whole.sum().item()
    fraction = count / 32 % 1
    assert abs(number / steps - count / 32) <= 4 * (fraction * (1 - fraction) / steps) ** 0.5


def test_boundary_pairs_can_be_all_or_none():
    every, none = (draw_time_pairs(50, Draws(1), boundary_prob=b) for b in (1, None))
    assert (every.start == 0).all() and (every.end == 1).all()
    assert (none.start > 0).all() and (none.end < 1).all()


def test_middle_is_halfway_on_the_clock_or_uniform():
    halfway = draw_time_pairs(1000, Draws(2))
    torch.testing.assert_close(halfway.middle, (halfway.start + halfway.end) / 2)
    pairs = draw_time_pairs(1000, Draws(2), random_middle=True)
    fraction = (pairs.middle - pairs.start) / (pairs.end - pairs.start)
    assert torch.equal(pairs.start, halfway.start) and one_in_each_cell(fraction)
