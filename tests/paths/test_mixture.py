"""Schedules against closed forms, and every random step of a mixture against its law."""

import math

import pytest
import torch
from chi_square import chi_square_limit

from flm.paths.mixture import (
    Cosine,
    LogLinear,
    MaskSource,
    Polynomial,
    UniformSource,
    corrupt,
    euler_jump_probability,
    jump_probability,
    mix,
)
from flm.schema import check

LEVEL = 1e-3  # of each chi-square test; seeds are fixed
COUNT = 40_000
SCHEDULES = [Polynomial(), Polynomial(2), Polynomial(0.5), Cosine(), LogLinear(), LogLinear(0.2)]
NAMES = [f"{type(s).__name__}{getattr(s, 'exponent', getattr(s, 'eps', ''))}" for s in SCHEDULES]
TIMES = torch.tensor([0.01, 0.1, 0.3, 0.6, 0.9, 0.99], dtype=torch.float64)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def follows(found, law):
    """Whether counts (n,) follow probabilities (n,)."""
    expected = law * found.sum()
    possible = expected > 0
    assert found[~possible].sum() == 0 and expected[possible].min() > 5
    value = ((found - expected)[possible] ** 2 / expected[possible]).sum()
    return value < chi_square_limit(LEVEL, max(1, int(possible.sum()) - 1))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
def test_derivative_inverse_rate_and_ends(schedule):
    h = 1e-6
    slope = (schedule.kappa(TIMES + h) - schedule.kappa(TIMES - h)) / (2 * h)
    torch.testing.assert_close(schedule.derivative(TIMES), slope, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(schedule.inverse(schedule.kappa(TIMES)), TIMES, rtol=1e-11, atol=0)
    torch.testing.assert_close(schedule.rate(TIMES), slope / (1 - schedule.kappa(TIMES)), rtol=1e-6, atol=0)
    ends = schedule.kappa(double(0, 1))
    # exactly, so that a sampler's last step leaves nothing
    assert ends[1] == 1 and ends[0] == pytest.approx(getattr(schedule, "eps", 0), abs=1e-15)
    assert schedule.rate(double(1)).item() == math.inf and torch.equal(schedule.inverse(double(0, 1)), double(0, 1))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
def test_the_rate_keeps_its_digits_near_the_end(schedule):
    """All end at 1 with a slope, so (1 - t) rate tends to 1."""
    rest = double(1e-3, 1e-6, 1e-9)
    found = rest * schedule.rate(1 - rest)
    torch.testing.assert_close(found, torch.ones_like(rest), rtol=2e-3, atol=0)


def test_closed_forms():
    t = double(0.1, 0.3, 0.6, 0.9)
    torch.testing.assert_close(Polynomial(2).rate(t), double(0.202020, 0.659341, 1.875, 9.473684), rtol=1e-5, atol=0)
    torch.testing.assert_close(Polynomial(3).rate(t), double(0.030030, 0.277492, 1.377551, 8.966790), rtol=1e-5, atol=0)
    torch.testing.assert_close(LogLinear(1e-3).rate(t), 1 / (1 - t))
    # the published form: sigma(s) = -log(1 - (1 - eps) s), alpha = exp(-sigma), s = 1 - t
    torch.testing.assert_close(LogLinear(1e-3).kappa(t), torch.exp(torch.log1p(-(1 - 1e-3) * (1 - t))))
    torch.testing.assert_close(Cosine().kappa(t), 1 - torch.cos(math.pi * t / 2))
    # exact jumps in four steps
    for exponent, jumps in ((1, (1 / 4, 1 / 3, 1 / 2, 1)), (2, (0.0625, 0.2, 0.416667, 1))):
        kappa = Polynomial(exponent).kappa(torch.linspace(0, 1, 5, dtype=torch.float64))
        torch.testing.assert_close(jump_probability(kappa[:-1], kappa[1:]), double(*jumps), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "exponent, steps, euler, exact", [(1, 8, 0.1795, 0.125), (2, 32, 0.0932, 0.0615), (3, 128, 0.0354, 0.0233)]
)
def test_what_is_left_before_the_last_step(exponent, steps, euler, exact):
    schedule, t = Polynomial(exponent), torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    kappa = schedule.kappa(t)
    assert (1 - jump_probability(kappa[:-2], kappa[1:-1])).prod().item() == pytest.approx(exact, abs=5e-5)
    left = (1 - euler_jump_probability(schedule, t[:-2], t[1:-1])).prod().item()
    assert left == pytest.approx(euler, abs=5e-5)


@pytest.mark.parametrize("wrong", [Polynomial, LogLinear])
def test_schedules_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="schedule"):
        check(wrong, {"exponent" if wrong is Polynomial else "eps": -1.0}, "algo.schedule")


@pytest.mark.parametrize("probability", [0.3, torch.tensor([0.3]), torch.tensor([[0.3]])], ids=["number", "(B,)", "(B, 1)"])
def test_mix_replaces_each_position_with_its_probability(probability):
    ones, twos = torch.ones(1, COUNT, dtype=torch.long), torch.full((1, COUNT), 2)
    found = mix(ones, twos, probability, generator())
    assert follows(torch.bincount(found[0])[1:].double(), double(0.7, 0.3))
    assert torch.equal(mix(ones, twos, 0.0, generator()), ones) and torch.equal(mix(ones, twos, 1.0, generator()), twos)


def test_each_sequence_has_its_own_probability():
    tokens = torch.zeros(3, COUNT, dtype=torch.long)
    state = corrupt(tokens, double(0.0, 0.25, 1.0), MaskSource(5, 5), generator(1))
    assert (state[0] == 5).all() and (state[2] == 0).all()
    assert follows(torch.bincount(state[1], minlength=6)[[0, 5]].double(), double(0.25, 0.75))


def test_a_mask_may_be_one_of_the_ids():
    assert MaskSource(5, 5).num_states == 6 and MaskSource(3, 5).num_states == 5
    assert (MaskSource(3, 5).sample(torch.zeros(2, 4, dtype=torch.long), generator()) == 3).all()


V = 5


def step_law(source, state, p, kappa, after):
    """q(next | now, data = p) by Bayes' rule from the forward chain, p a probability vector; (num_states,)."""
    states = source.num_states
    noise = torch.zeros(states, dtype=torch.float64)
    if isinstance(source, MaskSource):
        noise[source.mask_id] = 1
    else:
        noise[:] = 1 / states
    data = torch.zeros(states, dtype=torch.float64)
    data[:V] = p
    prior = after * data + (1 - after) * noise  # of the less noised state
    now = torch.zeros(states, dtype=torch.float64)
    now[state] = 1
    likelihood = kappa / after * now + (1 - kappa / after) * noise[state]  # of the noisier one, given it
    joint = prior * likelihood
    return joint / joint.sum()


P = double(0.1, 0.05, 0.4, 0.2, 0.25)
SOURCES = [MaskSource(V, V), UniformSource(V)]


@pytest.mark.parametrize(
    "source, state, kappa, after",
    [
        *[(UniformSource(V), 2, kappa, after) for kappa, after in ((0.0, 0.2), (0.3, 0.5), (0.4, 1.0))],
        *[(MaskSource(V, V), V, kappa, after) for kappa, after in ((0.0, 0.2), (0.3, 0.5), (0.4, 1.0))],
        (MaskSource(V, V), 2, 0.3, 0.5),
    ],
)
def test_a_step_with_a_plugged_in_prediction_is_the_reverse_posterior(source, state, kappa, after):
    tokens = torch.full((1, COUNT), state)
    clean = torch.multinomial(P, COUNT, replacement=True, generator=generator(3))[None]
    own = torch.full((1, COUNT), P[state].item() if state < V else 0.0)
    found = source.step(tokens, clean, kappa, after, generator(4), own=own)
    law = step_law(source, state, P, kappa, after)
    assert follows(torch.bincount(found[0], minlength=source.num_states).double(), law)


@pytest.mark.parametrize("source", SOURCES, ids=["mask", "uniform"])
def test_a_step_with_the_posterior_given_the_state_is_exact(source):
    """One position: draw the token from p(data | state), step, and the states at the later time have their marginal."""
    kappa, after, n = 0.3, 0.55, 4 * COUNT
    data = torch.multinomial(P, n, replacement=True, generator=generator(5))[None]
    state = corrupt(data, kappa, source, generator(6))
    clean = torch.empty_like(state)
    for value in range(source.num_states):
        here = state[0] == value
        if isinstance(source, MaskSource):
            posterior = P if value == V else torch.nn.functional.one_hot(torch.tensor(value), V).double()
        else:
            posterior = P * (kappa * torch.nn.functional.one_hot(torch.tensor(value), V) + (1 - kappa) / V)
        draws = torch.multinomial(posterior, int(here.sum()), replacement=True, generator=generator(10 + value))
        clean[0, here] = draws
    moved = source.step(state, clean, kappa, after, generator(7))
    # the pair of states is as if both were made from data by the forward chain
    pairs = torch.bincount(state[0] * source.num_states + moved[0], minlength=source.num_states**2).double()
    later = corrupt(data, after, source, generator(8))
    earlier = corrupt(later, kappa / after, source, generator(9))
    reference = torch.bincount(earlier[0] * source.num_states + later[0], minlength=source.num_states**2).double()
    possible = reference > 0
    assert pairs[~possible].sum() == 0 and reference[possible].min() > 20
    value = ((pairs - reference)[possible] ** 2 / (pairs + reference)[possible]).sum()  # two samples of one law
    assert value < chi_square_limit(LEVEL, int(possible.sum()) - 1)


def test_probabilities_differ_by_sequence_in_a_step():
    source, tokens = UniformSource(V), torch.full((2, COUNT), 2)
    clean = torch.multinomial(P, 2 * COUNT, replacement=True, generator=generator(3)).view(2, COUNT)
    own = torch.full((2, COUNT), P[2].item())
    found = source.step(tokens, clean, double(0.3, 0.0), double(0.5, 0.9), generator(4), own=own)
    for row, (kappa, after) in enumerate([(0.3, 0.5), (0.0, 0.9)]):
        assert follows(torch.bincount(found[row], minlength=V).double(), step_law(source, 2, P, kappa, after))
