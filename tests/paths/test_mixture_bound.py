"""Weights, velocities and the generalized KL of discrete flow matching against published and hand-made numbers."""

import pytest
import torch

from flm.paths.mixture import MaskSource, Polynomial, UniformSource, corrupt, euler_jump_probability, jump_probability
from flm.paths.mixture_bound import generalized_kl, unigram_generalized_kl
from flm.posterior import TokenPosterior
from flm.vocabulary_losses import cross_entropy


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def given(p, count=1):
    """A posterior that is p (V,) at `count` positions."""
    table = double(*p).clamp_min(1e-300).log()[:, None]
    return TokenPosterior(torch.ones(1, count, 1, dtype=torch.float64), table)


WEIGHTS = {
    1: (1.111111, 1.428571, 2.5, 10.0),
    2: (0.202020, 0.659341, 1.875, 9.473684),
    3: (0.030030, 0.277492, 1.377551, 8.966790),
}


@pytest.mark.parametrize("n", WEIGHTS)
def test_the_weight_of_polynomial_schedules(n):
    torch.testing.assert_close(Polynomial(n).rate(double(0.1, 0.3, 0.6, 0.9)), double(*WEIGHTS[n]), atol=5e-7, rtol=0)


HALF = torch.tensor([0.5], dtype=torch.float64)


@pytest.mark.parametrize(
    "p, pairs, expected",
    [
        ((0.5, 0.25, 0.25, 0.0), ((0, 3), (1, 1)), {1: (1.3863, 1.5), 2: (0.9242, 1.0)}),
        ((0.1, 0.2, 0.3, 0.4), ((0, 1), (2, 2)), {1: (4.2052, 1.4), 2: (2.8034, 0.9333)}),
    ],
    ids=["mask", "uniform"],
)
@pytest.mark.parametrize("n", [1, 2])
def test_the_generalized_kl_of_one_position(p, pairs, expected, n):
    tokens, state = torch.tensor(pairs).T[:, None]
    weight = torch.ones(1, 2, dtype=torch.float64)
    _, found = generalized_kl(given(p, 2), tokens, state, weight)
    torch.testing.assert_close(Polynomial(n).rate(HALF) * found[0], double(*expected[n]), atol=5e-5, rtol=0)


@pytest.mark.parametrize("n, factor", [(1, 1.0), (2, 2 / 3)])
def test_the_velocity_of_a_jump(n, factor):
    """What Euler's probability and a draw from p do in a short step is the published velocity w (p - onehot(state))."""
    p, h = double(0.1, 0.2, 0.3, 0.4), 1e-7
    rate = euler_jump_probability(Polynomial(n), HALF, HALF + h) / h
    for state, velocity in ((1, (0.2, -1.6, 0.6, 0.8)), (2, (0.2, 0.4, -1.4, 0.8))):
        moved = rate * (p - torch.nn.functional.one_hot(torch.tensor(state), 4))
        torch.testing.assert_close(moved, factor * double(*velocity), atol=1e-5, rtol=0)


@pytest.mark.parametrize("n, expected", [(1, (1 / 4, 1 / 3, 1 / 2, 1)), (2, (0.0625, 0.2, 0.416667, 1))])
def test_exact_jump_probabilities(n, expected):
    kappas = Polynomial(n).kappa(torch.linspace(0, 1, 5, dtype=torch.float64))
    torch.testing.assert_close(jump_probability(kappas[:-1], kappas[1:]), double(*expected), atol=5e-7, rtol=0)


@pytest.mark.parametrize("softcap, temperature", [(None, 1.0), (5.0, 0.7)])
def test_value_and_gradient_equal_dense(softcap, temperature):
    generator = torch.Generator().manual_seed(0)
    hidden, table, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in ((2, 6, 3), (5, 3), (5,))
    )
    tokens = torch.randint(5, (2, 6), generator=generator)
    state = torch.where(torch.rand(2, 6, generator=generator) < 0.5, tokens, torch.randint(6, (2, 6), generator=generator))
    state[0, 0] = 5  # the mask, an id that no prediction gives
    assert (state == tokens).any() and (state != tokens).any()
    weight = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    posterior = TokenPosterior(hidden, table, bias, softcap, temperature)
    total, values = generalized_kl(posterior, tokens, state, weight)
    got = torch.autograd.grad(total, (hidden, table, bias))

    logits = hidden @ table.T + bias
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    p = torch.softmax(logits / temperature, -1)
    p_state = torch.cat((p, torch.zeros(2, 6, 1)), -1).gather(2, state[..., None])[..., 0]
    ce = -p.gather(2, tokens[..., None])[..., 0].log()
    reference = torch.where(state == tokens, 1 - p_state, ce - p_state)
    torch.testing.assert_close(values, reference.detach())
    want = torch.autograd.grad((reference * weight).sum(), (hidden, table, bias))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_at_a_mask_it_is_the_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    posterior = TokenPosterior(torch.randn(1, 4, 3, generator=generator), torch.randn(5, 3, generator=generator))
    tokens, weight = torch.tensor([[0, 1, 4, 2]]), torch.rand(1, 4, generator=generator)
    kl = generalized_kl(posterior, tokens, torch.full_like(tokens, 5), weight)
    for a, b in zip(kl, cross_entropy(posterior, tokens, weight), strict=True):
        torch.testing.assert_close(a, b)


def test_the_reference_without_context_is_its_mean_over_states():
    p, kappa = double(0.5, 0.3, 0.2, 0.0), double(0.0, 0.3, 0.9)
    for k, found in zip(kappa.tolist(), unigram_generalized_kl(p, kappa), strict=True):
        total = 0.0
        for i in range(4):
            evidence = p * ((1 - k) / 4 + k * torch.nn.functional.one_hot(torch.tensor(i), 4).double())
            posterior = given((evidence / evidence.sum()).tolist())
            for y in range(3):
                seen = evidence[y].item()
                value = generalized_kl(posterior, torch.tensor([[y]]), torch.tensor([[i]]), torch.ones(1, 1))[1].item()
                total += seen * value
        assert found.item() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("mask", [True, False], ids=["mask", "uniform"])
def test_a_published_library_agrees(mask):
    """Meta's flow_matching, where it is installed: the path's share, the loss and the velocity."""
    pytest.importorskip("flow_matching")
    from flow_matching.loss import MixturePathGeneralizedKL
    from flow_matching.path import MixtureDiscreteProbPath
    from flow_matching.path.scheduler import PolynomialConvexScheduler

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, (3, 8), generator=generator)
    source = MaskSource(5, 5) if mask else UniformSource(5)
    t = double(0.2, 0.5, 0.8)
    logits = torch.randn(3, 8, 5, generator=generator, dtype=torch.float64)
    for n in (1.0, 2.0, 3.0):
        schedule = Polynomial(n)
        state = corrupt(tokens, schedule.kappa(t), source, generator)
        theirs = torch.cat((logits, torch.full((3, 8, 1), -torch.inf)), -1) if mask else logits
        path = MixtureDiscreteProbPath(scheduler=PolynomialConvexScheduler(n=n))
        loss = MixturePathGeneralizedKL(path=path, reduction="none")(theirs, tokens, state, t)
        posterior = TokenPosterior(logits, torch.eye(5, dtype=torch.float64))
        _, found = generalized_kl(posterior, tokens, state, torch.ones(3, 8, dtype=torch.float64))
        torch.testing.assert_close(schedule.rate(t)[:, None] * found, loss.double())
