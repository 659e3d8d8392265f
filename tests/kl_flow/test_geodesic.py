"""The KL geodesic against printed constants, finite differences, simulation, and its own closed forms."""

import math

import pytest
import torch

from flm.kl_flow.geodesic import (
    Geodesic,
    GeodesicClock,
    context_free_cross_entropy,
    identifiability,
    identifying_signal,
    log_evidence,
    log_noise,
    target_gap,
)

E = torch.tensor([[0.2, 1.0, 0.5, 2.0]], dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(path, signal, prior, count, seed=0):
    """Tokens (count,) of a prior, and their m (count, V) at a signal."""
    g = generator(seed)
    tokens = torch.multinomial(prior, count, replacement=True, generator=g)
    m = log_noise((count, path.vocab_size), path.concentration, g, torch.float64)
    m[torch.arange(count), tokens] += signal
    return tokens, m


def near(a, b, atol=1e-6):
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64), rtol=0, atol=atol
    )


# Constants -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vocab_size,gap",
    [(4, 5.9839), (27, 7.8913), (256, 10.1403), (4096, 12.9129), (50257, 15.4200), (128000, 16.3549)],
)
def test_gap_of_the_smoothed_target(vocab_size, gap):
    assert target_gap(vocab_size, 0.01) == pytest.approx(gap, abs=5e-5)
    beta = 0.01
    assert math.log(1 - beta + beta / vocab_size) - math.log(beta / vocab_size) == pytest.approx(target_gap(vocab_size, beta))


def test_a_path_written_out():
    """V = 4, beta = 0.1, token 1, t = 0.25, through the simplex and through m; the posterior for two priors."""
    path = Geodesic.of(4, 0.5, smoothing=0.1)
    near(path.gap, math.log(37))
    s = path.signal(0.25)
    near(s, 1.203639)
    m = E.log()
    m[0, 1] += s
    x = torch.softmax(0.75 * m, -1)[0]
    near(x, [0.059318, 0.489176, 0.117935, 0.333570])
    target = torch.full((4,), 0.1 / 4, dtype=torch.float64)
    target[1] += 0.9
    along = (E[0] / E.sum()) ** 0.75 * target**0.25
    near(along / along.sum(), x)
    near(torch.softmax(m, -1)[0], [0.033155, 0.552404, 0.082888, 0.331553])
    evidence = log_evidence(m.clone(), torch.tensor([[s]], dtype=torch.float64))
    near(torch.softmax(evidence, -1)[0], [0.089244, 0.573975, 0.103184, 0.233597])
    prior = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    near(torch.softmax(evidence + prior.log(), -1)[0], [0.141721, 0.683612, 0.081929, 0.092739])


def test_the_clock_is_even_in_minus_log_one_minus_t():
    clock = GeodesicClock(0.5)
    grid = torch.linspace(0, 1, 5, dtype=torch.float64)
    times = clock.time(grid)
    near(times, [0, 0.159104, 0.292893, 0.405396, 0.5])
    near(Geodesic.of(4, 0.5, smoothing=0.1).signal(times), [0, 0.683211, 1.495691, 2.461898, 3.610918])
    assert times[-1] == pytest.approx(0.5, abs=1e-15) and GeodesicClock(0.3).span == pytest.approx(0.356675, abs=1e-6)
    near(clock.tau(times), grid, 1e-12)
    h = 1e-6
    near((clock.tau(times + h) - clock.tau(times - h))[1:-1] / (2 * h), clock.rate(times)[1:-1], 1e-8)


# Where a token is known -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vocab_size,signal,time,at_third",
    [(27, 5.949, 0.4298, 0.8780), (256, 6.412, 0.3874, 0.9239), (4096, 6.786, 0.3445, 0.9655), (50257, 7.034, 0.3133, 0.9847)],
)
def test_the_path_ends_where_99_percent_are_known(vocab_size, signal, time, at_third):
    path = Geodesic.of(vocab_size)
    assert identifying_signal(vocab_size, 0.99) == pytest.approx(signal, abs=5e-4)
    assert path.max_t == pytest.approx(time, abs=5e-5)
    assert identifiability(vocab_size, path.signal(0.3)) == pytest.approx(at_third, abs=5e-5)


@pytest.mark.parametrize("vocab_size,t,known", [(27, 0.1, 0.2260), (27, 0.4, 0.9802), (4096, 0.2, 0.7038)])
def test_identifiability_equals_simulation(vocab_size, t, known):
    path, count = Geodesic.of(vocab_size), 4000
    assert identifiability(vocab_size, path.signal(t)) == pytest.approx(known, abs=5e-5)
    tokens, m = draw(path, path.signal(t), torch.ones(vocab_size), count)
    share = (m.argmax(-1) == tokens).double().mean().item()
    assert abs(share - known) < 4 * (known * (1 - known) / count) ** 0.5


# The prior --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concentration", [1.0, 0.3, 4.0])
def test_noise_is_dirichlet(concentration):
    """Mean 1/V and variance (V-1) / (V^2 (V a + 1)) of every entry."""
    v, count = 6, 60_000
    x = torch.softmax(log_noise((count, v), concentration, generator(), torch.float64), -1)
    variance = (v - 1) / (v**2 * (v * concentration + 1))
    near(x.mean(0), torch.full((v,), 1 / v), 5 * (variance / count) ** 0.5)
    near(x.var(0) / variance, torch.ones(v), 0.05)
    pair = torch.stack([x[:, 0], x[:, 1]]).cov()[0, 1].item()
    assert pair == pytest.approx(-variance / (v - 1), abs=0.1 * variance / (v - 1))


def test_noise_is_finite_where_gamma_variables_underflow():
    assert torch.isfinite(log_noise((1000, 50), 1e-2, generator())).all()
    assert log_noise((1000, 50), 1e-2, generator()).min() < -500  # below the smallest positive fp32 number's logarithm
    assert torch.isfinite(log_noise((1000, 1000), 1.0, generator())).all()


# What one position says --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concentration", [1.0, 0.4, 3.0])
def test_the_posterior_of_one_token_is_calibrated(concentration):
    """E[(onehot - p) g(m)] = 0 for functions g of the state, and mean -log p(token) equals mean entropy: z-tests."""
    path = Geodesic.of(5, 0.3, concentration=concentration)
    prior = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
    count, signal = 100_000, 1.7
    tokens, m = draw(path, signal, prior, count)
    log_p = (prior.log() + log_evidence(m.clone(), torch.tensor([[signal]]).double(), concentration)).log_softmax(-1)
    residual = torch.nn.functional.one_hot(tokens, 5) - log_p.exp()
    u = torch.softmax(m, -1)
    for function in (torch.ones(count), u[:, 0], u[:, 3], (u.argmax(-1) == 2).double(), torch.log1p(-u[:, 1])):
        values = residual * function[:, None]
        z = values.mean(0) / (values.std(0) / count**0.5)
        assert z.abs().max() < 4.5
    gap = -log_p[torch.arange(count), tokens] - torch.special.entr(log_p.exp()).sum(-1)
    assert abs(gap.mean() / (gap.std() / count**0.5)) < 4


def test_evidence_at_the_ends():
    m = torch.randn(3, 6, generator=generator(), dtype=torch.float64)
    zero, late = (torch.tensor([[s]], dtype=torch.float64) for s in (0.0, 30.0))
    near(log_evidence(m.clone(), zero), torch.zeros(3, 6), 0)
    known = torch.where(torch.arange(6) == 2, m + 30.0, m)
    assert torch.softmax(log_evidence(known, late), -1)[:, 2].min() > 1 - 1e-9


def test_velocity_from_the_posterior_is_the_derivative_of_the_path():
    """d/dt E[f(x_t)] by central differences along conditional paths equals E[grad f . v], v = (c p - l) / (1 - t)."""
    path = Geodesic.of(4, 0.9, smoothing=0.2)
    prior = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
    count, t, h = 100_000, 0.35, 1e-4
    tokens, noise = draw(path, 0.0, prior, count)
    target = path.gap * torch.nn.functional.one_hot(tokens, 4).double()

    def function(logits):
        x = torch.softmax(logits, -1)
        return x[:, 0] ** 2 - x[:, 1] * x[:, 2] + x[:, 3].sqrt()

    def point(t):
        return (1 - t) * noise + t * target

    rate = (function(point(t + h)) - function(point(t - h))) / (2 * h)
    here = point(t).requires_grad_()
    (slope,) = torch.autograd.grad(function(here).sum(), here)
    here = here.detach()
    signal = torch.tensor([[path.signal(t)]], dtype=torch.float64)
    p = (prior.log() + log_evidence(here / (1 - t), signal)).softmax(-1)
    gap = rate - (slope * (path.gap * p - here) / (1 - t)).sum(-1)
    assert abs(gap.mean() / (gap.std() / count**0.5)) < 4
    assert rate.mean().abs() > 20 * gap.std() / count**0.5  # something moves
    # given the token, the velocity is the path's derivative itself
    conditional = (slope * (target - here) / (1 - t)).sum(-1)
    near(rate, conditional, 1e-5)


@pytest.mark.parametrize("t,share", [(0.10, 0.871), (0.20, 0.475), (0.30, 0.144)])
def test_context_free_loss_equals_the_entropy_of_the_posterior(t, share):
    """Uniform tokens, V = 27: printed entropies over log V, which their cross-entropy equals."""
    path = Geodesic.of(27)
    found = context_free_cross_entropy(path, torch.ones(27), torch.tensor([0.0, t]), generator(), num_draws=8192)
    assert found[0] == pytest.approx(math.log(27), abs=1e-9)
    assert found[1] / math.log(27) == pytest.approx(share, abs=0.015)


def test_context_free_loss_begins_at_the_entropy_of_the_frequencies_and_allows_unseen_tokens():
    counts = torch.tensor([6.0, 3.0, 1.0, 0.0])
    found = context_free_cross_entropy(Geodesic.of(4), counts, torch.tensor([0.0, 0.4]), generator(), num_draws=20_000)
    p = counts[:3] / 10
    assert found[0] == pytest.approx(-(p * p.log()).sum().item(), abs=0.02)
    assert torch.isfinite(found).all() and found[1] < found[0]


def test_bad_options_name_their_key():
    with pytest.raises(ValueError, match="algo.max_t"):
        Geodesic.of(27, concentration=2.0)
