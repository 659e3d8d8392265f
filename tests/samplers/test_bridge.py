"""The family of re-noising steps: the spec's coefficients and toy worlds, and the older samplers as members of it."""

import itertools

import pytest
import torch
from chi_square import chi_square_limit
from test_flow import B, TinyDenoiser, dense_noise
from test_flow_map_sampler import canvases, rough_denoiser

from flm.paths.clock import DecodingErrorClock, IdentityClock
from flm.paths.gaussian import State, combine, embed, expected, noise_for, step, where
from flm.paths.renoising import bridge, churned, kept_noise, renoised
from flm.posterior import TokenPosterior
from flm.samplers.canvas import Canvas
from flm.samplers.flow import FlowSampler
from flm.samplers.fresh_noise import BridgeSampler, FlowMapSampler
from flm.schema import check


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def number(value):
    return State((torch.tensor(float(value), dtype=torch.float64),))


def coefficients(t, s, zeta):
    """a, b, v of x' ~ N(a x + b e, v), read off the step itself."""
    one, none = number(1), number(0)
    inputs = (one, none, none), (none, one, none), (none, none, one)
    a, b, c = (renoised(state, end, t, s, zeta, noise).views[0].item() for state, end, noise in inputs)
    return a, b, c * c


def test_the_exact_bridge_has_the_coefficients_of_the_source():
    assert coefficients(0.5, 0.8, bridge(0.5, 0.8)) == pytest.approx((0.1, 0.75, 0.0375), abs=1e-14)
    assert coefficients(0.0, 0.6, bridge(0.0, 0.6)) == pytest.approx((0.0, 0.6, 0.16), abs=1e-14)  # it forgets the first noise
    for t, s, u in torch.rand(200, 3, generator=generator(), dtype=torch.float64).sort(1).values.tolist():
        a, b, v = coefficients(t, s, bridge(t, s))
        assert a * t + b == pytest.approx(s, abs=1e-9) and a**2 * (1 - t) ** 2 + v == pytest.approx((1 - s) ** 2, abs=1e-9)
        assert a == pytest.approx(t * (1 - s) ** 2 / (s * (1 - t) ** 2), abs=1e-9)
        a_su, b_su, v_su = coefficients(s, u, bridge(s, u))  # two steps to one vertex are one
        a_tu, b_tu, v_tu = coefficients(t, u, bridge(t, u))
        assert (a_su * a, a_su * b + b_su, a_su**2 * v + v_su) == pytest.approx((a_tu, b_tu, v_tu), abs=1e-9)


def test_every_zeta_keeps_mean_and_noise_level_of_a_known_vertex():
    for t, s, share in ((0.3, 0.5, 0.0), (0.3, 0.5, 0.4), (0.0, 0.9, 1.0), (0.7, 0.71, 0.9)):
        a, b, v = coefficients(t, s, share * (1 - s))
        assert a * t + b == pytest.approx(s) and a**2 * (1 - t) ** 2 + v == pytest.approx((1 - s) ** 2)
    assert kept_noise(0.4, 0.6) == 0.0 and churned(0.0) == 0.0


# Exact worlds ---------------------------------------------------------------------------------------------------------


class OnePosition:
    """One position without context, seen through the identity: the exact posterior."""

    def __init__(self, prior=(0.5, 0.3, 0.2)):
        self.prior, self.clock = torch.tensor(prior, dtype=torch.float64), IdentityClock()
        self.tables = (torch.eye(len(prior), dtype=torch.float64),)

    def __call__(self, state, tau, tau_to=None):
        t = tau.double()[:, None, None]
        return TokenPosterior(self.prior.log() + t * state.views[0] / (1 - t) ** 2, self.tables[0])


@pytest.mark.parametrize("endpoint", ["token", "mean"])
def test_the_bridge_to_a_drawn_vertex_keeps_the_path_and_the_one_to_the_mean_does_not(endpoint):
    """E[(first coordinate)^2] at s = 0.6 is 0.3402; the spec's Monte Carlo for the mean is 0.2789."""
    world, count, (t, s) = OnePosition(), 200_000, (0.35, 0.6)
    y = torch.multinomial(world.prior, count, replacement=True, generator=generator())[:, None]
    x = State((t * world.tables[0][y] + (1 - t) * torch.randn(count, 1, 3, generator=generator(1), dtype=torch.float64),))
    posterior = world(x, torch.full((count,), t, dtype=torch.float64))
    end = BridgeSampler(endpoint).endpoint(posterior, world.tables, generator(2))
    noise = State((torch.randn(count, 1, 3, generator=generator(3), dtype=torch.float64),))
    values = renoised(x, end, t, s, bridge(t, s), noise).views[0][:, 0, 0].square()
    want = {"token": 0.5 * s**2 + (1 - s) ** 2, "mean": 0.2789}[endpoint]
    assert abs(values.mean() - want) < 4 * values.std() / count**0.5 + 1e-3


@pytest.mark.parametrize("gamma", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 3])
def test_one_position_is_exact_in_any_number_of_steps_for_every_zeta(steps, gamma):
    world, count = OnePosition(), 20_000
    tokens = BridgeSampler(gamma=gamma)(world, Canvas.blank(count, 1), steps, generator(5))
    expected_counts = count * world.prior
    statistic = ((torch.bincount(tokens[:, 0], minlength=3) - expected_counts) ** 2 / expected_counts).sum().item()
    assert statistic < chi_square_limit(1e-4, 2)


class Pair:
    """Two positions, always the same token, each with probability 1/2."""

    tables, clock = (torch.eye(2, dtype=torch.float64),), DecodingErrorClock(2)

    def __call__(self, state, tau, tau_to=None):
        t = self.clock.time(tau.double())[:, None]
        d = state.views[0][..., 1] - state.views[0][..., 0]
        logit = (t * d.sum(1, keepdim=True) / (1 - t) ** 2).expand(-1, 2)
        return TokenPosterior(torch.stack((torch.zeros_like(logit), logit), -1), self.tables[0])


SPLIT = {  # P(y1 != y2) after 1, 2, 4, 8 and 16 steps uniform in tau (se 0.0008)
    None: (0.500, 0.275, 0.107, 0.035, 0.0103),
    1.0: (0.500, 0.276, 0.114, 0.038, 0.0106),
    0.0: (0.500, 0.275, 0.103, 0.034, 0.0103),
}


@pytest.mark.parametrize("gamma", SPLIT)
def test_few_steps_part_what_belongs_together_as_often_as_the_spec_says(gamma):
    count = 40_000
    for steps, want in zip((1, 2, 4, 8, 16), SPLIT[gamma], strict=True):
        tokens = BridgeSampler(gamma=gamma)(Pair(), Canvas.blank(count, 2), steps, generator(steps))
        share = (tokens[:, 0] != tokens[:, 1]).double().mean().item()
        assert abs(share - want) < 4 * (want * (1 - want) / count) ** 0.5 + 0.0024
    # it is drawing, not the number of steps, that parts them
    assert torch.equal(*FlowSampler()(Pair(), Canvas.blank(500, 2), 4, generator()).T)


@pytest.mark.parametrize("gamma", [None, 0.6])
def test_given_positions_keep_the_law_of_their_path(gamma):
    seen = []

    class Watch(TinyDenoiser):
        def __call__(self, state, tau, tau_to=None):
            seen.append((tau[0].item(), state.views[0].clone()))
            return super().__call__(state, tau)

    denoiser, canvas = Watch(), Canvas.from_pieces([[3], 2, [7, 1], 1], 400)
    tokens = BridgeSampler(gamma=gamma)(denoiser, canvas, 5, generator(2))
    given, (table,) = ~canvas.editable[0], denoiser.tables
    assert torch.equal(tokens[:, given], canvas.tokens[:, given])
    for tau, view in seen:
        t = denoiser.clock.time(torch.tensor(tau, dtype=torch.float64))
        noise = ((view - t * table[canvas.tokens]) / (1 - t))[:, given]
        assert noise.mean().abs() < 0.1 and (noise.square().mean() / table.square().sum(0).mean() - 1).abs() < 0.1


def test_a_map_is_asked_for_its_denoiser():
    denoiser, asked = rough_denoiser(), []

    class Watch:
        tables, clock = denoiser.tables, denoiser.clock

        def __call__(self, state, tau, tau_to):
            asked.append((tau, tau_to))
            return denoiser(state, tau, tau_to)

    a = BridgeSampler()(Watch(), canvases()["holes"], 6, generator(4))
    assert all(torch.equal(*times) for times in asked) and len(asked) == 6
    assert not torch.equal(a, BridgeSampler(gamma=1.0)(denoiser, canvases()["holes"], 6, generator(4)))
    with pytest.raises(ValueError, match="sampling.gamma"):
        check(BridgeSampler, {"gamma": 1.5}, "sampling")


# The older samplers, as they were written before they were members ------------------------------------------------------


def point(posterior, canvas, tables):
    return where(canvas.editable, expected(posterior, tables), embed(canvas.tokens, tables))


def churning(denoiser, canvas, steps, state, generator, heun, churn, churn_noise):
    """Raise the noise, then step: Karras et al., algorithm 2."""
    law, tau = noise_for(denoiser.tables), torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    times = denoiser.clock.time(tau).tolist()
    tell = lambda value: torch.full((len(canvas.tokens),), float(value))  # noqa: E731
    for i in range(steps):
        t, now = times[i], tau[i]
        if churn > 0 and i > 0:
            sigma = (1 - t) / t
            t = 1 / (1 + (1 + churn) * sigma)
            spread = t * churn_noise * sigma * ((1 + churn) ** 2 - 1) ** 0.5
            state = combine((t / times[i], state), (spread, law.sample(*canvas.tokens.shape, generator)))
            now = denoiser.clock.tau(torch.tensor(t, dtype=torch.float64))
        posterior = denoiser(state, tell(now))
        if i == steps - 1:
            return canvas.fill(posterior.argmax())
        here = point(posterior, canvas, denoiser.tables)
        moved = step(state, here, t, times[i + 1])
        if heun:
            ahead = point(denoiser(moved, tell(tau[i + 1])), canvas, denoiser.tables)
            a, b = (times[i + 1] - t) / 2 / (1 - t), (times[i + 1] - t) / 2 / (1 - times[i + 1])
            moved = combine((1 - a, state), (a, here), (b, ahead), (-b, moved))
        state = moved


@pytest.mark.parametrize(
    "heun,churn,churn_noise", [(False, 0.0, 1.0), (True, 0.0, 1.0), (False, 0.7, 1.0), (True, 0.7, 1.0), (False, 0.3, 1.2)]
)
def test_churn_of_a_flow_gives_the_samples_it_gave(heun, churn, churn_noise):
    denoiser, canvas = TinyDenoiser(), Canvas.from_pieces([[3], 2, [7, 1], 1], B)
    start = State((dense_noise() @ denoiser.tables[0],))
    sampler = FlowSampler("heun" if heun else "euler", churn, churn_noise)
    for steps in (1, 2, 9):
        want = churning(denoiser, canvas, steps, start, generator(3), heun, churn, churn_noise)
        assert torch.equal(sampler.integrate(denoiser, canvas, steps, start, generator(3)), want)
    assert want[:, canvas.editable[0]].unique().numel() > 3


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_churn_of_a_map_gives_the_samples_it_gave(gamma):
    """Aim beyond the next time, and bring the noise back: arXiv 2602.16813."""
    denoiser, canvas = rough_denoiser(), canvases()["holes"]
    tables, clock = denoiser.tables, denoiser.clock
    for steps, seed in itertools.product((1, 2, 5), (1, 2)):
        draws = generator(seed)
        state = start = noise_for(tables).sample(*canvas.tokens.shape, draws)
        tau = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        sigma = 1 - clock.time(tau)
        aim = 1 - sigma * (1 - gamma**2) ** 0.5
        told = clock.tau(aim) if gamma > 0 else tau
        tell = lambda value: torch.full((len(canvas.tokens),), float(value))  # noqa: E731
        for i in range(steps):
            output = denoiser(state, tell(tau[i]), tell(told[i + 1]))
            here = point(output, canvas, tables)
            landed = step(state, here, 1 - sigma[i].item(), aim[i + 1].item())
            if gamma > 0 and i < steps - 1:
                lowered = (1 - aim[i + 1] - sigma[i + 1]).item()
                fresh = noise_for(tables).sample(*canvas.tokens.shape, draws)
                landed = combine((1.0, landed), (lowered, here), (gamma * sigma[i + 1].item(), fresh))
            state = landed
        got = generator(seed)
        noise_for(tables).sample(*canvas.tokens.shape, got)
        assert torch.equal(FlowMapSampler(gamma).integrate(denoiser, canvas, steps, start, got), canvas.fill(output.argmax()))
