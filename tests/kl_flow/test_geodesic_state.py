"""Recipes of states against dense tensors: what a network reads, its gradient, what is clean, and what is held at once."""

import pytest
import torch
from algos.test_flm import LiveMemory

import flm.posterior
from flm.kl_flow.geodesic import Geodesic
from flm.kl_flow.geodesic_state import FEATURES, Carried, Moved, Noise, Signalled, State, corrupt, embed
from flm.posterior import TokenPosterior

B, L, V, D = 3, 5, 11, 4
DOUBLE = {"dtype": torch.float64}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gathered(logits):
    """All of m, (N, V)."""
    return torch.cat([m for _, m in logits.chunks()])


SEEDS = (5, 6, 7)


def noise_of(path):
    return Noise(SEEDS, L, path, torch.device("cpu"), torch.float64)


class Given:
    """Logits that are what they are."""

    def __init__(self, m):
        self.m = m

    def chunks(self):
        yield slice(0, len(self.m)), self.m.clone()


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 4 * V)


def dense_features(name, m, t, path):
    """(B, L, V) in plain formulas."""
    logits = (1 - t)[:, None, None] * m
    if name == "simplex":
        return torch.softmax(logits, -1)
    if name == "sharpened":
        x = torch.softmax(logits, -1) ** (1 / (1 - t))[:, None, None]
        return x / x.sum(-1, keepdim=True)
    if name == "log":
        return logits - logits.mean(-1, keepdim=True)
    u, r = torch.softmax(m, -1), torch.exp(-path.signal(t))[:, None, None]
    others = u.sum(-1, keepdim=True) - u
    likelihood = (others + r * u) ** (-V * path.concentration)
    return likelihood / likelihood.sum(-1, keepdim=True)


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("concentration", [1.0, 0.5])
def test_view_and_gradient_equal_dense(features, concentration):
    """Also that another reading gives the same noise, and that clean positions are their token's vector exactly."""
    path = Geodesic.of(V, 0.5, concentration=concentration)
    g = generator(1)
    tokens, clean = torch.randint(V, (B, L), generator=g), torch.rand(B, L, generator=g) < 0.4
    t = torch.tensor([0.0, 0.2, 0.45], **DOUBLE)
    table = torch.randn(V, D, generator=g, **DOUBLE).requires_grad_()
    state = corrupt(tokens, t, path, SEEDS, clean, torch.float64)
    view = embed(state, table, features, path)
    weight = torch.randn(B, L, D, generator=g, **DOUBLE)
    (got,) = torch.autograd.grad((view.sin() * weight).sum(), table)

    m = gathered(noise_of(path)).view(B, L, V)
    assert m.std() > 0.5
    one_hot = torch.nn.functional.one_hot(tokens, V).double()
    x = dense_features(features, m + path.signal(t)[:, None, None] * one_hot, t, path)
    target = path.gap * (one_hot - 1 / V) if features == "log" else one_hot
    x = torch.where(clean[..., None], target, x)
    dense = x @ table
    (want,) = torch.autograd.grad((dense.sin() * weight).sum(), table)
    torch.testing.assert_close(view, dense, rtol=0, atol=1e-12)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11)
    if features != "log":
        assert torch.equal(view[clean], table[tokens[clean]])


@pytest.mark.parametrize("features", FEATURES)
def test_a_constant_added_to_a_position_changes_nothing(features):
    path, m = Geodesic.of(V, 0.5), torch.randn(B * L, V, generator=generator(), **DOUBLE)
    table = torch.randn(V, D, generator=generator(1), **DOUBLE)
    tokens, t = torch.zeros(B, L, dtype=torch.long), torch.full((B,), 0.3, **DOUBLE)
    shift = 20 * torch.randn(B * L, 1, generator=generator(2), **DOUBLE)
    views = [embed(State(Given(logits), t, tokens), table, features, path) for logits in (m, m + shift)]
    torch.testing.assert_close(*views, rtol=0, atol=1e-11)


@pytest.mark.parametrize("features", FEATURES)
def test_fp32_features_are_those_of_fp64_at_the_end_of_a_wide_vocabulary(features, monkeypatch):
    """V = 50,257 at max_t: where e^-s is smallest and log(1 - u (1 - e^-s)) is multiplied by V."""
    path = Geodesic.of(50257)
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 2**22)
    m = gathered(
        Signalled(
            Noise([1], 8, path, torch.device("cpu"), torch.float64),
            torch.arange(8)[None],
            torch.tensor([path.signal(path.max_t)]),
        )
    )
    t = torch.full((8, 1), path.max_t, **DOUBLE)
    exact = FEATURES[features](m.clone(), t, path)
    rounded = FEATURES[features](m.float(), t, path)
    torch.testing.assert_close(rounded.double(), exact, rtol=5e-3, atol=1e-5)


def small_posterior(seed=3):
    g = generator(seed)
    return TokenPosterior(
        torch.randn(B, L, D, generator=g, **DOUBLE), 2 * torch.randn(V, D, generator=g, **DOUBLE), softcap=3.0
    )


def test_moving_by_a_recipe_and_in_place_are_the_same():
    path, posterior = Geodesic.of(V, 0.5), small_posterior()
    base = noise_of(path)
    gain = torch.tensor([0.0, 1.5, -0.7], **DOUBLE)
    got = gathered(Moved(base, posterior, gain)).view(B, L, V)
    want = gathered(base).view(B, L, V) + gain[:, None, None] * posterior.probabilities()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    held = Carried(base, B * L, V, torch.device("cpu"), torch.float64)
    held.move(posterior, 0.8, keep=0.9)
    want = 0.9 * gathered(base).view(B, L, V) + 0.8 * posterior.probabilities()
    torch.testing.assert_close(gathered(held).view(B, L, V), want - want.amax(-1, keepdim=True), rtol=0, atol=1e-12)
    next(iter(held.chunks()))[1].zero_()  # a reader's to overwrite
    assert gathered(held).view(B, L, V)[0].std() > 0


def test_peak_memory_of_reading_a_state_holds_chunks_and_no_more(monkeypatch):
    """A state of two jumps over V = 20,000, forward and backward: a few chunks, the table and its gradient, not (B, L, V)."""
    v, length, chunk = 20_000, 64, 2**18
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", chunk)
    path, table = Geodesic.of(v), torch.randn(v, 8, requires_grad=True)
    tokens = torch.randint(v, (2, length), generator=generator())
    posterior = TokenPosterior(torch.randn(2, length, 8), torch.randn(v, 8))
    with LiveMemory() as memory:
        state = corrupt(tokens, torch.full((2,), 0.2, **DOUBLE), path, range(2))
        moved = state.at(Moved(state.logits, posterior, torch.ones(2, **DOUBLE)), state.t)
        embed(moved, table, "simplex", path).square().sum().backward()
    assert memory.peak < 4 * (6 * chunk + 3 * table.numel())
    assert 4 * 2 * length * v > 4 * (6 * chunk + 3 * table.numel())  # one (B, L, V) tensor would show
