"""The flow-map sampler: exact maps give in one step what a thousand Euler steps give; churn keeps the law of the state."""

import pytest
import torch
from algos.dense_flow_map import dense, dense_jump, rough, small_dit
from algos.exact_world import ExactTeacher, correlated, single_token
from torch.nn.functional import one_hot

from flm.algos.fmlm import TwoTimeDenoiser
from flm.paths.clock import DecodingErrorClock
from flm.paths.gaussian import State
from flm.posterior import TokenPosterior
from flm.samplers.canvas import Canvas
from flm.samplers.flow import FlowSampler
from flm.samplers.fresh_noise import FlowMapSampler
from flm.schema import check

V, L, B = 40, 6, 20


def rough_denoiser():
    """Its predictions differ between states and times, and so do their arg-maxes."""
    torch.manual_seed(0)
    backbone = small_dit(V, L, 16, softcap=None)(vocab_size=V, two_times=True).double().eval()
    return TwoTimeDenoiser(rough(backbone, size=0.3), DecodingErrorClock(V))


def canvases(batch=B):
    return {"blank": Canvas.blank(batch, L), "holes": Canvas.from_pieces([[3], 2, [7, 1], 1], batch)}


class Watched:
    """A denoiser that remembers the states and times it was asked about."""

    def __init__(self, denoiser):
        self.denoiser, self.tables, self.clock, self.seen = denoiser, denoiser.tables, denoiser.clock, []

    def __call__(self, state, tau, tau_to=None):
        tau_to = tau if tau_to is None else tau_to
        self.seen.append((tau[0].item(), tau_to[0].item(), state.views[0].clone()))
        return self.denoiser(state, tau, tau_to)


# Against the exact map ------------------------------------------------------------------------------------------------


def test_one_step_of_the_exact_map_equals_a_thousand_euler_steps():
    """And four steps of it pass through the same states. The tokens of a few states that Euler steps carry over the
    watershed may differ."""
    world, count = correlated(), 300
    noise = torch.randn(count, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    canvas, generator = Canvas.blank(count, 2), torch.Generator()
    teacher = ExactTeacher(world).double().denoiser()
    euler = Watched(teacher)
    long_way = FlowSampler().integrate(euler, canvas, 1000, State((noise,)), generator)
    for steps in (1, 4):
        exact = Watched(world.denoiser())
        tokens = FlowMapSampler().integrate(exact, canvas, steps, State((noise,)), generator)
        assert (tokens == long_way).double().mean() > 0.995
        for tau, _, view in exact.seen:
            passed = next(v for at, _, v in euler.seen if abs(at - tau) < 1e-6)
            torch.testing.assert_close(view, passed, rtol=0, atol=0.01)
            assert (view - passed).abs().mean() < 1e-3
    # one Euler step is no such map
    short = FlowSampler().integrate(teacher, canvas, 1, State((noise,)), generator)
    assert (short == long_way).double().mean() < 0.9


@pytest.mark.parametrize("world", [single_token(0.3), correlated()], ids=["one token", "two positions"])
@pytest.mark.parametrize("gamma,steps", [(0.0, 1), (0.0, 4), (1.0, 4), (0.5, 4)])
def test_exact_map_gives_the_data_distribution(world, gamma, steps):
    count = 6000
    denoiser = world.denoiser()
    denoiser.backbone.nodes = 20
    tokens = FlowMapSampler(gamma)(denoiser, Canvas.blank(count, world.length), steps, torch.Generator().manual_seed(3))
    index = (tokens * 2 ** torch.arange(world.length).flip(0)).sum(1)
    counts = torch.bincount(index, minlength=world.joint.numel())
    expected = count * world.joint.flatten()
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < {1: 10.8, 3: 16.3}[len(counts) - 1]  # 0.1%


# Jumps by hand --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("canvas", canvases())
def test_without_churn_it_composes_jumps(steps, canvas):
    """Dense states; every state the network is shown, and the tokens."""
    canvas, denoiser = canvases()[canvas], Watched(rough_denoiser())
    backbone, clock = denoiser.denoiser.backbone, denoiser.clock
    x = torch.randn(B, L, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = FlowMapSampler().integrate(denoiser, canvas, steps, State((x @ backbone.input_table,)), torch.Generator())
    taus = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    given = one_hot(canvas.tokens, V).double()
    for i, (tau, tau_to) in enumerate(zip(taus, taus[1:], strict=False)):
        assert denoiser.seen[i][:2] == pytest.approx((tau.item(), tau_to.item()), abs=1e-7)
        torch.testing.assert_close(denoiser.seen[i][2], x @ backbone.input_table, rtol=0, atol=1e-9)
        told = [time.float().double().expand(B) for time in (tau, tau_to)]
        delta = torch.where(canvas.editable[..., None], dense(backbone, x, *told), given)
        x = dense_jump(x, delta, *(clock.time(time).expand(B) for time in (tau, tau_to)))
    assert len(denoiser.seen) == steps
    assert torch.equal(got, x.argmax(-1)) and got[:, canvas.editable[0]].unique().numel() > 2


# Churn ----------------------------------------------------------------------------------------------------------------


class Steadfast:
    """Always certain of the same token: then the state's law is known at every step, whatever the churn."""

    token = 2

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.tables, self.clock = (torch.randn(V, 3, generator=generator, dtype=torch.float64),), DecodingErrorClock(V)

    def __call__(self, state, tau, tau_to=None):
        logits = torch.full((*state.views[0].shape[:2], V), -1e3, dtype=torch.float64)
        logits[..., self.token] = 0.0
        return TokenPosterior(logits, torch.eye(V, dtype=torch.float64))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.8, 1.0])
def test_churn_keeps_the_mean_and_the_noise_level(gamma):
    """At grid time t' the state is t' onehot + (1-t') noise, and of the old noise sqrt(1 - gamma^2) is left."""
    denoiser, steps = Watched(Steadfast()), 4
    (table,), clock = denoiser.tables, denoiser.clock
    FlowMapSampler(gamma)(denoiser, Canvas.blank(4000, 5), steps, torch.Generator().manual_seed(1))
    covariance = table.T @ table
    root = torch.linalg.cholesky(covariance)
    before = None
    for i, (tau, tau_to, view) in enumerate(denoiser.seen):
        t, t_next = clock.time(torch.tensor([i / steps, (i + 1) / steps], dtype=torch.float64))
        aim = 1 - (1 - t_next) * (1 - gamma**2) ** 0.5
        assert tau == pytest.approx(i / steps, abs=1e-6)
        assert tau_to == pytest.approx(clock.tau(aim).item(), abs=1e-6)  # told where the jump aims
        noise = (view - t * table[Steadfast.token]) / (1 - t)
        white = torch.linalg.solve_triangular(root, noise.flatten(0, 1).T, upper=False)
        error = len(white.T) ** -0.5
        assert white.mean(1).abs().max() < 4 * error
        assert (white @ white.T / len(white.T) - torch.eye(3)).abs().max() < 4.5 * 2**0.5 * error
        if before is not None:
            kept = (white * before).mean()
            assert abs(kept - (1 - gamma**2) ** 0.5) < 4 * error
        before = white


def test_churn_has_no_effect_in_one_step():
    denoiser, canvas = rough_denoiser(), Canvas.blank(B, L)
    one, three = (
        [FlowMapSampler(gamma)(denoiser, canvas, steps, torch.Generator().manual_seed(4)) for gamma in (0.0, 0.7, 1.0)]
        for steps in (1, 3)
    )
    assert torch.equal(one[0], one[1]) and torch.equal(one[0], one[2])
    assert not torch.equal(three[0], three[1]) and not torch.equal(three[0], three[2])


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_given_positions_stay_given_and_on_their_conditional_path(gamma, steps):
    canvas, denoiser = canvases(200)["holes"], Watched(rough_denoiser())
    (table,) = denoiser.tables
    tokens = FlowMapSampler(gamma)(denoiser, canvas, steps, torch.Generator().manual_seed(1))
    given = ~canvas.editable[0]
    assert torch.equal(tokens[:, given], canvas.tokens[:, given])
    assert tokens[:, ~given].unique().numel() > 2
    first = denoiser.seen[0][2]
    for tau, _, view in denoiser.seen:
        t = denoiser.clock.time(torch.tensor(round(tau * steps) / steps, dtype=torch.float64))
        noise = (view - t * table[canvas.tokens])[:, given] / (1 - t)
        if gamma == 0:
            torch.testing.assert_close(noise, first[:, given], rtol=0, atol=1e-9)
        scale = noise.square().mean() / (table**2).sum(0).mean()
        assert 0.85 < scale < 1.15


def test_temperature_sharpens_the_prediction_it_jumps_with():
    denoiser, canvas = rough_denoiser(), Canvas.blank(B, L)
    x = State((torch.randn(B, L, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64),))
    plain, cold = (Watched(denoiser) for _ in range(2))
    FlowMapSampler().integrate(plain, canvas, 2, x, torch.Generator())
    FlowMapSampler(temperature=1e-9).integrate(cold, canvas, 2, x, torch.Generator())
    t = denoiser.clock.time(torch.tensor(0.5, dtype=torch.float64))
    argmax = denoiser(x, torch.zeros(B), torch.full((B,), 0.5)).argmax()
    want = (1 - t) * x.views[0] + t * denoiser.tables[0][argmax]
    torch.testing.assert_close(cold.seen[1][2], want, rtol=0, atol=1e-6)
    assert (plain.seen[1][2] - want).abs().max() > 0.01


def test_bad_options_name_their_key():
    for options, key in (({"gamma": 1.1}, "gamma"), ({"gamma": -0.1}, "gamma"), ({"temperature": -0.1}, "temperature")):
        with pytest.raises(ValueError, match="sampling." + key):
            check(FlowMapSampler, options, "sampling")
    with pytest.raises(ValueError, match="sampling.steps"):
        FlowMapSampler()(rough_denoiser(), Canvas.blank(1, L), 0, torch.Generator())
