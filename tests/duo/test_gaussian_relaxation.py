"""The Gaussian diffusion under uniform-state diffusion: closed forms, and few noises drawn against all V of them."""

import math

import pytest
import torch
from chi_square import chi_square_limit

from flm.duo.gaussian_relaxation import ArgmaxTransform, coupled_states, largest_normals, other_tokens, relaxed

LEVEL = 1e-5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def chi_square(counts, probabilities):
    expected = probabilities * counts.sum()
    assert expected.min() > 5
    return ((counts - expected) ** 2 / expected).sum().item()


def kolmogorov_smirnov(a, b):
    """Two-sample statistic over its limit at LEVEL."""
    both = torch.cat((a, b)).sort().values
    gap = (torch.searchsorted(a.sort().values, both) / len(a) - torch.searchsorted(b.sort().values, both) / len(b)).abs().max()
    return (gap / math.sqrt(-math.log(LEVEL / 2) / 2 * (1 / len(a) + 1 / len(b)))).item()


# Which level of discrete noise a level of Gaussian noise is ----------------------------------------------------------


def test_two_tokens_in_closed_form():
    transform, m = ArgmaxTransform(2), doubles(0, 0.01, 0.3, 2, 6, 9)
    torch.testing.assert_close(transform.kappa(m), torch.erf(m / 2), rtol=0, atol=1e-14)
    torch.testing.assert_close(transform.noise(m), torch.erfc(m / 2), rtol=1e-9, atol=0)  # 2e-10 at the end
    torch.testing.assert_close(transform.derivative(m), torch.exp(-(m**2) / 4) / math.sqrt(math.pi), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("vocab_size", [3, 97, 50257])
def test_derivative_inverse_and_ends(vocab_size):
    transform, m, e = ArgmaxTransform(vocab_size), doubles(0.2, 1.5, 3, 5, 7), 1e-4
    slope = (transform.kappa(m + e) - transform.kappa(m - e)) / (2 * e)
    torch.testing.assert_close(transform.derivative(m), slope, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(transform.inverse(transform.kappa(m)), m, rtol=0, atol=1e-8)
    assert transform.kappa(doubles(0)).abs() < 1e-12 and transform.inverse(doubles(0)) < 1e-9


def test_the_arg_max_of_dense_noise():
    vocab_size, count = 30, 40_000
    tokens = torch.randint(vocab_size, (count,), generator=generator(1))
    for m in (1.0, 3.0):
        w = torch.randn(count, vocab_size, generator=generator(2))
        w[torch.arange(count), tokens] += m
        hits = (w.argmax(-1) == tokens).double().sum()
        p = ArgmaxTransform(vocab_size).kappa(doubles(m)) * (1 - 1 / vocab_size) + 1 / vocab_size
        counts, law = torch.stack((hits, count - hits)), torch.cat((p, 1 - p))
        assert chi_square(counts, law) < chi_square_limit(LEVEL, 1)


# Few noises in place of all ------------------------------------------------------------------------------------------


def test_largest_normals_are_the_order_statistics_of_all():
    found = largest_normals(50, 6, (4000,), generator())
    dense = torch.randn(4000, 50, generator=generator(1), dtype=torch.float64).sort(descending=True).values[:, :6]
    assert (found[:, :-1] >= found[:, 1:]).all()
    for a, b in ((found, dense), (-found.diff(), -dense.diff())):  # each, and each gap to the next
        for k in range(a.shape[1]):
            assert kolmogorov_smirnov(a[:, k], b[:, k]) < 1
    # of a million: -n log Phi of the largest is a standard exponential
    many = largest_normals(10**6, 2, (4000,), generator(2))[:, 0]
    exponential = -torch.rand(4000, generator=generator(3), dtype=torch.float64).log()
    assert kolmogorov_smirnov(-(10**6) * torch.special.log_ndtr(many), exponential) < 1


@pytest.mark.parametrize("vocab_size,count", [(14, 3), (6, 5)])  # drawn again where they repeat; all put in order
def test_other_tokens_are_an_ordered_draw_without_replacement(vocab_size, count):
    tokens = torch.tensor([2, vocab_size - 1]).repeat(12_000, 1)
    found = other_tokens(tokens, count, vocab_size, generator())
    assert not (found == tokens[..., None]).any() and found.min() >= 0 and found.max() < vocab_size
    assert (found.sort().values.diff() > 0).all()
    for column in range(2):
        rows = found[:, column]
        for first, second in ((0, 1), (0, count - 1), (1, count - 1)):
            if first == second:
                continue
            pairs = torch.bincount(rows[:, first] * vocab_size + rows[:, second], minlength=vocab_size**2).double()
            allowed = (torch.arange(vocab_size) != tokens[0, column]).double()
            law = allowed[:, None] * allowed * (1 - torch.eye(vocab_size, dtype=torch.float64))
            law = (law / law.sum()).flatten().double()
            assert pairs[law == 0].sum() == 0
            statistic = chi_square(pairs[law > 0], law[law > 0])
            assert statistic < chi_square_limit(LEVEL, (vocab_size - 1) * (vocab_size - 2) - 1)


def dense_relaxation(tokens, ratio, temperature, table, rng):
    """Textbook: all V noises, a softmax over V."""
    a, b = ratio / (1 + ratio**2).sqrt(), 1 / (1 + ratio**2).sqrt()
    noise = torch.randn(*tokens.shape, table.shape[0], generator=rng, dtype=torch.float64)
    onehot = torch.nn.functional.one_hot(tokens, table.shape[0])
    w = a[:, None, None] * onehot + b[:, None, None] * noise
    return (w / temperature).softmax(-1) @ table, w.argmax(-1)


@pytest.mark.parametrize("top", [100, 25])
@pytest.mark.parametrize("temperature", [1e-3, 0.1])
def test_relaxed_views_have_the_dense_law(temperature, top):
    """Each of a few projections, by Kolmogorov-Smirnov, apart where the token is still the largest and where it is not."""
    vocab_size, count = 60, 8000
    table = torch.randn(vocab_size, 3, generator=generator(5), dtype=torch.float64)
    tokens = torch.randint(vocab_size, (count, 1), generator=generator(6))
    ratio = torch.full((count,), 2.2, dtype=torch.float64)
    view, state = relaxed(tokens, ratio, temperature, table, top, generator(7))
    dense, dense_state = dense_relaxation(tokens, ratio, temperature, table, generator(8))
    own, dense_own = state == tokens, dense_state == tokens
    p = ArgmaxTransform(vocab_size).kappa(doubles(2.2)) * (1 - 1 / vocab_size) + 1 / vocab_size
    counts = torch.stack((own.sum(), (~own).sum())).double()
    assert chi_square(counts, torch.cat((p, 1 - p))) < chi_square_limit(LEVEL, 1)
    for a, b in ((own, dense_own), (~own, ~dense_own)):
        for k in range(3):
            assert kolmogorov_smirnov(view[a][:, k], dense[b][:, k]) < 1
            # beside the row of its arg-max: how far it is relaxed
            off, dense_off = view[a] - table[state[a]], dense[b] - table[dense_state[b]]
            assert kolmogorov_smirnov(off[:, k], dense_off[:, k]) < 1


def test_the_noises_not_drawn_enter_with_their_mean():
    """At a temperature so high that they hold a fifth or more of the mass."""
    vocab_size, count = 60, 20_000
    table = torch.randn(vocab_size, 4, generator=generator(5), dtype=torch.float64) + 1
    tokens = torch.randint(vocab_size, (count, 1), generator=generator(6))
    ratio = torch.full((count,), 1.5, dtype=torch.float64)
    for temperature in (0.3, 2.0):
        view, _ = relaxed(tokens, ratio, temperature, table, 12, generator(7))
        dense, _ = dense_relaxation(tokens, ratio, temperature, table, generator(8))
        for moment in (lambda x: x, lambda x: x * table[tokens]):
            a, b = moment(view)[:, 0], moment(dense)[:, 0]
            error = ((a.var(0) + b.var(0)) / count).sqrt()
            assert ((a.mean(0) - b.mean(0)) / error).abs().max() < 4.5


@pytest.mark.parametrize("top", [4, 100])
def test_gradient_of_the_table_by_finite_differences(top):
    table = torch.randn(20, 3, generator=generator(1), dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(20, (2, 3), generator=generator(2))

    def view(table):
        return relaxed(tokens, doubles(1.0, 3.0), 0.4, table, top, generator(3))[0]

    assert torch.autograd.gradcheck(view, (table,))
    assert torch.autograd.grad(view(table).square().sum(), table)[0].abs().min() > 1e-4  # every row is read


# Two states of one trajectory ----------------------------------------------------------------------------------------


def test_coupled_states_are_arg_maxes_of_the_same_noise():
    vocab_size, count = 40, 30_000
    tokens = torch.full((count, 1), 7)
    m = doubles(1.5, 3.0)
    noisier, cleaner = coupled_states(tokens, m[:1].expand(count), m[1:].expand(count), vocab_size, generator())
    p, q = ArgmaxTransform(vocab_size).kappa(m) * (1 - 1 / vocab_size) + 1 / vocab_size
    for state, share in ((noisier, p), (cleaner, q)):
        law = torch.full((vocab_size,), ((1 - share) / (vocab_size - 1)).item(), dtype=torch.float64)
        law[7] = share
        counts = torch.bincount(state.flatten(), minlength=vocab_size).double()
        assert chi_square(counts, law) < chi_square_limit(LEVEL, vocab_size - 1)
    # once the token, always the token; before that, the same other one
    assert (cleaner[noisier == tokens] == 7).all()
    both = (noisier != tokens) & (cleaner != tokens)
    assert torch.equal(noisier[both], cleaner[both])
    kinds = torch.stack(((noisier == 7).sum(), ((noisier != 7) & (cleaner == 7)).sum(), both.sum())).double()
    assert chi_square(kinds, torch.stack((p, q - p, 1 - q))) < chi_square_limit(LEVEL, 2)
