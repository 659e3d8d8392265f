"""The bound of uniform-state diffusion in a world where every sequence and every state can be counted."""

import itertools

import numpy
import pytest
import torch
from torch.nn.functional import one_hot

import flm.posterior
from flm.duo.uniform_bound import bound_density, prior_nats, uniform_density
from flm.posterior import TokenPosterior

V, L = 3, 2
SEQUENCES = torch.tensor(list(itertools.product(range(V), repeat=L)))
JOINT = torch.tensor([[0.30, 0.02, 0.08], [0.01, 0.20, 0.04], [0.05, 0.25, 0.05]], dtype=torch.float64)


def posterior_of(probabilities):
    """What a network would have to give for these probabilities (B, L, V)."""
    return TokenPosterior(probabilities.log(), torch.eye(probabilities.shape[-1], dtype=probabilities.dtype))


def kernel(kappa):
    """q(z | x) of one position, (V, V)."""
    return kappa * torch.eye(V, dtype=torch.float64) + (1 - kappa) / V


def given_the_rest(states, kappa):
    """p(x_l | z at all other positions) for states (B, 2): exact, (B, 2, V)."""
    q = kernel(kappa)
    first = (JOINT @ q[:, states[:, 1]]).T  # sum_x2 p(x1, x2) q(z2 | x2)
    second = (JOINT.T @ q[:, states[:, 0]]).T
    found = torch.stack((first, second), 1)
    return found / found.sum(-1, keepdim=True)


def disturbed(states, kappa):
    """A denoiser that is wrong, differently at each state."""
    wrong = given_the_rest(states, kappa) ** 0.5 * (1 + 0.4 * one_hot(states, V)) + 0.02
    return wrong / wrong.sum(-1, keepdim=True)


def roots(count=160):
    """Nodes and weights of sqrt(1 - kappa) in (0, 1)."""
    x, w = numpy.polynomial.legendre.leggauss(count)
    return [(float((a + 1) / 2), float(b / 2)) for a, b in zip(x, w, strict=True)]


def whole_bound(denoiser):
    """Its exact value for every sequence (V^L,): all states, all kappa from 0 to 1."""
    total = torch.zeros(len(SEQUENCES), dtype=torch.float64)
    count = len(SEQUENCES)
    data, states = SEQUENCES.repeat_interleave(count, 0), SEQUENCES.repeat(count, 1)
    for root, weight in roots():
        noise = torch.full((count**2,), root**2, dtype=torch.float64)
        probability = kernel(1 - root**2)[data, states].prod(-1)
        posterior = posterior_of(denoiser(states, 1 - root**2))
        _, density = bound_density(posterior, data, states, 1 - noise, noise, torch.ones(data.shape))
        total += 2 * root * weight * (probability * density.sum(1)).view(count, count).sum(1)
    return total


def test_density_and_gradients_equal_the_textbook_form(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 3e-4)):
        for chunk in (1, 5, 1000):
            monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", chunk * 7)
            for kappa in (1e-3, 0.2, 0.9, 1 - 1e-4):
                shapes = ((3, 4, 5), (7, 5), (7,))
                leaves = [torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
                posterior = TokenPosterior(*leaves, softcap=3.0, temperature=0.8)
                tokens = torch.randint(7, (3, 4), generator=rng)
                states = torch.where(torch.rand(3, 4, generator=rng) < 0.5, tokens, torch.randint(7, (3, 4), generator=rng))
                weight = torch.rand(3, 4, generator=rng, dtype=torch.float64).to(dtype)
                k = torch.full((3,), kappa, dtype=torch.float64)
                total, density = bound_density(posterior, tokens, states, k, 1 - k, weight)

                hidden, table, bias = (leaf.double() for leaf in leaves)
                p = (3 * torch.tanh((hidden @ table.T + bias) / 3) / 0.8).softmax(-1)
                data, own = 7 * kappa * one_hot(tokens, 7).double() + 1 - kappa, states[..., None]
                model = 7 * kappa * p + 1 - kappa
                r, s = data / data.gather(2, own), model / model.gather(2, own)
                want = (r * (r / s).log() - r + s).sum(-1) / (7 * kappa)
                scale = want.abs().max()
                torch.testing.assert_close(density.double() / scale, want.detach() / scale, rtol=0, atol=tolerance)
                got = torch.autograd.grad(2.5 * total, leaves)
                expected = torch.autograd.grad(2.5 * (want * weight.double()).sum(), leaves)
                for a, b in zip(got, expected, strict=True):
                    torch.testing.assert_close(a / b.abs().max(), b / b.abs().max(), rtol=0, atol=tolerance)


def test_the_bound_is_tight_for_the_posterior_given_the_rest():
    """For every single sequence, not just on average."""
    torch.testing.assert_close(whole_bound(given_the_rest), -JOINT.flatten().log(), rtol=0, atol=1e-5)


def test_any_other_denoiser_is_bounded_away_from_its_own_probability():
    """The model's probability of each sequence from its jump rates between all V^L states, by Runge-Kutta."""
    bound = whole_bound(disturbed)
    count = len(SEQUENCES)
    apart = (SEQUENCES[:, None] != SEQUENCES[None]).sum(-1)  # positions in which two states differ

    def change(law, kappa):
        model = V * kappa * disturbed(SEQUENCES, kappa) + 1 - kappa  # Y, (states, L, V)
        rates = torch.zeros(count, count, dtype=torch.float64)
        for position in range(L):
            y = model[:, position]
            ratio = y[:, SEQUENCES[:, position]] / y.gather(1, SEQUENCES[:, position, None])
            moves = (apart == 1) & (SEQUENCES[:, None, position] != SEQUENCES[None, :, position])
            rates += torch.where(moves, ratio / (V * kappa), torch.zeros_like(ratio))
        return law @ rates - law * rates.sum(1)

    law = torch.full((count,), 1 / count, dtype=torch.float64)
    kappas = 1 - torch.linspace(1, 1e-5, 1200, dtype=torch.float64) ** 2
    kappas[0] = 1e-9
    for a, b in itertools.pairwise(kappas.tolist()):
        h = b - a
        k1 = change(law, a)
        k2 = change(law + h / 2 * k1, a + h / 2)
        k3 = change(law + h / 2 * k2, a + h / 2)
        law = law + h / 6 * (k1 + 2 * k2 + 2 * k3 + change(law + h * k3, b))
    assert law.sum().item() == pytest.approx(1, abs=1e-9)
    slack = bound + law.log()
    assert (slack > 1e-3).all()
    # on data: above the entropy
    assert (JOINT.flatten() * bound).sum() > torch.special.entr(JOINT).sum() + 0.05


def test_prior_is_the_divergence_from_uniform():
    for size in (2, 97, 50257):
        for kappa in (1e-3, 0.3, 0.99):
            law = torch.full((size,), (1 - kappa) / size, dtype=torch.float64)
            law[0] += kappa
            want = (law * (law * size).log()).sum()
            torch.testing.assert_close(prior_nats(torch.tensor(kappa, dtype=torch.float64), size), want, rtol=1e-9, atol=1e-15)


def test_the_density_of_the_uniform_prediction():
    """Equal to that of a posterior without preference; with the prior's part its whole integral is log V."""
    tokens = torch.arange(V).repeat(5, 1)
    kappa = torch.tensor([1e-3, 0.2, 0.5, 0.9, 1 - 1e-5], dtype=torch.float64)
    even = posterior_of(torch.full((5, V, V), 1 / V, dtype=torch.float64))
    for states in (tokens, (tokens + 1) % V):
        _, want = bound_density(even, tokens, states, kappa, 1 - kappa, torch.ones(5, V))
        found = uniform_density(states == tokens, kappa, 1 - kappa, V)
        torch.testing.assert_close(found, want, rtol=1e-7, atol=1e-9)
    start = torch.tensor(1e-2, dtype=torch.float64)
    for size in (2, 97, 50257):
        total = prior_nats(start, size).item()
        for root, weight in roots():
            noise = (1 - start) * torch.tensor([root], dtype=torch.float64) ** 2
            own, other = (uniform_density(torch.tensor([[same]]), 1 - noise, noise, size).item() for same in (True, False))
            keeps = 1 - noise.item() * (1 - 1 / size)
            total += (1 - start.item()) * 2 * root * weight * (keeps * own + (1 - keeps) * other)
        assert total == pytest.approx(torch.tensor(float(size)).log().item(), rel=1e-4)
