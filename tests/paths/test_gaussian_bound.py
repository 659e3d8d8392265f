"""The variational bound against enumerated truth: equality for the exact posterior, validity for every other denoiser."""

import pytest
import torch
from algos.exact_world import correlated, single_token, three_tokens
from likelihood_gap import (
    SpoiltBackbone,
    average,
    bounds_of,
    entropy,
    every_sequence,
    flm_of,
    plans_of,
    words,
)

from flm.algos.algorithm import Batch
from flm.draws import Draws
from flm.paths.gaussian_bound import CELLS, Pilot, Plan, largest_ratio, measure, token_errors
from flm.posterior import CHUNK_ELEMENTS, TokenPosterior

REPEATS = 8000


def spoilt(world, **how):
    return flm_of(world, SpoiltBackbone(world, **how))


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_token_errors_are_those_of_dense_probabilities(softcap, monkeypatch):
    g = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    posterior = TokenPosterior(normal(3, 5, 4), normal(7, 4), normal(7), softcap)
    tokens = torch.randint(7, (3, 5), generator=g)
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 28)  # four tokens at a time
    squared, surprise = token_errors(posterior, tokens)
    p = posterior.probabilities()
    torch.testing.assert_close(squared, (p - torch.nn.functional.one_hot(tokens, 7)).square().sum(-1))
    torch.testing.assert_close(surprise, -p.gather(2, tokens[..., None])[..., 0].log())


def test_a_certain_token_keeps_its_small_error():
    """1 - p = 3e-6 in fp32, where 1 - 2 p + p^2 would be rounding alone."""
    logits = torch.tensor([[[12.7, 0.0]]])
    squared, surprise = token_errors(TokenPosterior(logits, torch.eye(2)), torch.zeros(1, 1, dtype=torch.long))
    q = torch.sigmoid(torch.tensor(-12.7, dtype=torch.float64))
    assert squared.item() == pytest.approx(2 * q.item() ** 2, rel=0.05, abs=0)
    assert surprise.item() == pytest.approx(q.item(), rel=0.05)


def test_evidence_has_the_stated_precision():
    """Two tokens, even odds before: the surprise is E softplus(-odds), odds ~ N(precision, 2 precision), an integral."""
    count = 100_000
    posterior = TokenPosterior(torch.zeros(2, count, 1), torch.zeros(2, 1, dtype=torch.float32))
    precision = torch.tensor([0.7, 4.0], dtype=torch.float64)
    tokens = torch.arange(2 * count).view(2, count) % 2
    squared, surprise = token_errors(posterior, tokens, precision, torch.Generator().manual_seed(0))
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / (2 * torch.pi) ** 0.5 * (z[1] - z[0])
    for i, p in enumerate(precision):
        odds = p + (2 * p).sqrt() * z
        for values, truth in ((surprise, torch.nn.functional.softplus(-odds)), (squared, 2 * torch.sigmoid(-odds) ** 2)):
            assert abs(values[i].mean() - (density * truth).sum()) < 4.5 * values[i].std() / count**0.5


@pytest.mark.parametrize("world", [single_token(0.1, "identity"), three_tokens()], ids=["two", "three"])
@pytest.mark.parametrize("kind", ["whole path", "cut", "cut, with evidence"])
def test_of_one_token_the_exact_posterior_gives_the_exact_likelihood_of_each(world, kind):
    """Wherever the path is cut, and however the evidence is shared out: one position has no context to lose."""
    algorithm = spoilt(world)
    mean, error = bounds_of(algorithm, world, REPEATS, plan=plans_of(algorithm, world)[kind])
    truth = -every_sequence(world)[1].log()
    assert ((mean - truth).abs() < 4.5 * error).all()
    assert error.max() < 0.1


def test_of_a_sequence_the_whole_path_gives_the_exact_likelihood_of_each():
    """In context too; also where V = 2 has the decoding-error clock and not the identity."""
    for world in (words(), correlated("decoding")):
        mean, error = bounds_of(spoilt(world), world, REPEATS)
        assert ((mean + every_sequence(world)[1].log()).abs() < 4.5 * error).all()


def bayes_gap(world, m_cut, mixed, count=4000, nodes=60):
    """The gap of a spoilt denoiser by dense arithmetic: integral of m E|D - D*|^2, and what decoding by position loses."""
    sequences, p = every_sequence(world)
    onehot = torch.nn.functional.one_hot(sequences, world.vocab_size).double()
    g = torch.Generator().manual_seed(7)
    gap = 0.0
    which = torch.multinomial(p, count, replacement=True, generator=g)
    for k in range(nodes + 1):
        m = m_cut * min(k + 0.5, nodes) / nodes
        y = m**2 * onehot[which] + m * torch.randn(count, *onehot.shape[1:], generator=g, dtype=torch.float64)
        scores = p.log() + torch.einsum("nlv,slv->ns", y, onehot)
        joint = scores.log_softmax(1)
        exact = torch.einsum("ns,slv->nlv", joint.exp(), onehot)
        used = (1 - mixed) * exact + mixed / world.vocab_size
        if k < nodes:
            gap += m_cut / nodes * m * (used - exact).square().sum((1, 2)).mean().item()
        else:
            by_position = torch.einsum("nlv,slv->nsl", used.log(), onehot).sum(2)
            gap += (joint.exp() * (joint - by_position)).sum(1).mean().item()
    return gap


@pytest.mark.parametrize("m_cut", [1.5, None])
def test_the_gap_is_the_distance_from_the_exact_posterior_and_closes_with_it(m_cut):
    world, gaps = words(), []
    edges = torch.linspace(0, m_cut or largest_ratio(3), CELLS + 1, dtype=torch.float64)
    plan = Plan(edges, Plan.even(3).mass)
    for mixed in (0.4, 0.1, 0.02):
        mean, error = average(world, bounds_of(spoilt(world, mixed=mixed), world, REPEATS, plan=plan))
        expected = bayes_gap(world, edges[-1].item(), mixed)
        assert mean - entropy(world) == pytest.approx(expected, abs=4.5 * error + 0.03 * expected)
        gaps.append(mean - entropy(world))
    assert gaps[0] > gaps[1] > gaps[2] - 4.5 * error
    assert gaps[0] > 20 * error  # there is a gap to close


@pytest.mark.parametrize("how", [{"mixed": 0.3}, {"deaf_from": 1.0}, {"deaf_from": 2.0}], ids=str)
@pytest.mark.parametrize("kind", ["whole path", "cut", "cut, with evidence"])
def test_whatever_the_denoiser_it_bounds_a_probability(how, kind):
    """exp(-bound) of all sequences sums to at most 1, and on average the bound is above the entropy."""
    world = words()
    algorithm = spoilt(world, **how)
    mean, error = bounds_of(algorithm, world, REPEATS, plan=plans_of(algorithm, world)[kind])
    total = torch.exp(-mean)
    assert total.sum() < 1 + 3 * (total * error).square().sum().sqrt()
    average_bound, its_error = average(world, (mean, error))
    assert average_bound > entropy(world) + 4.5 * its_error


def test_cutting_and_evidence_mend_a_network_that_is_deaf_near_the_data():
    world = words()
    algorithm = spoilt(world, deaf_from=2.0)
    gaps = {}
    for kind, plan in plans_of(algorithm, world).items():
        mean, error = average(world, bounds_of(algorithm, world, REPEATS, plan=plan))
        gaps[kind] = mean - entropy(world)
    assert max(gaps["cut"], gaps["cut, with evidence"]) < 0.5 * gaps["whole path"]


def test_proposals_agree_and_the_pilot_has_less_variance():
    world = words()
    algorithm = spoilt(world)
    tokens = world.sample(30_000, torch.Generator().manual_seed(3))
    batch = Batch(tokens, torch.ones(tokens.shape))
    pilot = plans_of(algorithm, world, size=2048)["cut"]
    cells = len(pilot.edges) - 1
    assert cells > 5  # the exact posterior is worth following far
    even = torch.cat([torch.full((cells,), 0.9 / cells, dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64)])
    a, b = (algorithm.bound(batch, Draws(4), plan=plan).nats for plan in (pilot, Plan(pilot.edges, even)))
    assert abs(a.mean() - b.mean()) < 4.5 * ((a.var() + b.var()) / len(tokens)) ** 0.5
    assert a.var() < 0.9 * b.var()


def test_parts_add_up_and_stand_where_the_draws_were():
    world = words()
    algorithm = spoilt(world)
    tokens = world.sample(500, torch.Generator().manual_seed(3))
    for plan in plans_of(algorithm, world).values():
        bound = algorithm.bound(Batch(tokens, torch.ones(tokens.shape)), Draws(4), plan=plan)
        torch.testing.assert_close(sum(bound.parts.values()), bound.nats)
        assert [name for name in bound.parts if name.startswith("decoding")] == [list(bound.parts)[-1]]
        m, _, decoding = plan.place(Draws(4).stratified(500))
        first = next(iter(bound.parts.values()))
        expected = (m < largest_ratio(3) / 8) & ~decoding
        assert torch.equal(first > 0, expected) and expected.any()


def test_draws_fill_the_plan_evenly_and_weights_are_inverse_densities():
    plan = Plan(torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    m, weight, decoding = plan.place(u)
    assert decoding.sum() == 200 and (m[decoding] == 4).all() and (weight[decoding] == 5).all()
    assert (m < 1).sum() == 500
    assert torch.allclose(m[:500], (torch.arange(500, dtype=torch.float64) + 0.5) / 500)
    assert torch.allclose(weight[:500], torch.tensor(2.0, dtype=torch.float64))
    assert torch.allclose(weight[500:800], torch.tensor(10.0, dtype=torch.float64))
    # integral of m^2 from 0 to 4, and the value at the end
    assert (torch.where(decoding, 0.0, m**2) * weight).mean() == pytest.approx(64 / 3, rel=1e-4)


def asked(algorithm, tokens):
    """What the pilot is given of one batch, all of it scored."""
    batch = Batch(tokens, torch.ones(tokens.shape))
    return algorithm._gaussian(batch), tokens, batch.scored


def test_the_pilot_measures_and_cuts_at_the_least_bound():
    world = words()
    algorithm = spoilt(world, deaf_from=1.0)
    batches = [world.sample(4000, torch.Generator().manual_seed(k)) for k in range(4)]
    pilot = measure([asked(algorithm, tokens) for tokens in batches], Draws(0))
    k = 12  # the middle of the cell, against the bound's own estimator cut there
    plan = Plan(pilot.edges[: k + 1], Plan.even(3).mass[-k - 1 :] / Plan.even(3).mass[-k - 1 :].sum())
    mean, error = average(world, bounds_of(algorithm, world, REPEATS, plan=plan))
    assert 2 * pilot.bounds()[k].item() == pytest.approx(mean, abs=4.5 * error + 0.1)
    assert [row["bound_if_cut_at_t_to_nats"] for row in pilot.rows()] == pilot.bounds()[1:].tolist()
    best = pilot.plan()
    assert len(best.edges) - 1 == pilot.bounds().argmin()
    assert best.mass.sum() == pytest.approx(1) and (best.mass > 0).all()


def test_a_network_that_never_listens_is_cut_at_the_start():
    """There the bound is the cross-entropy of what it says of pure noise."""
    flat = torch.full((CELLS,), 0.3, dtype=torch.float64)
    plan = Pilot(Plan.even(3).edges, flat, flat, torch.ones(CELLS, dtype=torch.float64)).plan()
    assert plan.edges.tolist() == [0.0] and plan.mass.tolist() == [1.0]
    world = three_tokens()
    mean, error = bounds_of(spoilt(world), world, 50, plan=plan)
    assert torch.allclose(mean, -world.joint.log()) and error.max() < 1e-9


def test_too_small_a_pilot_is_refused():
    world = three_tokens()
    with pytest.raises(ValueError, match="eval.pilot_draws=31"):
        measure([asked(spoilt(world), world.sample(31, torch.Generator()))], Draws(0))
