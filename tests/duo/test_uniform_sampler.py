"""Samplers of uniform-state diffusion against the exact law of what they do, in a world of two tokens and two positions."""

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from chi_square import chi_square_limit

import flm.posterior
from flm.duo.uniform_sampler import CorrectingSampler, UniformSampler
from flm.duo.uniform_state import SOLVERS
from flm.paths.mixture import LogLinear, UniformSource
from flm.posterior import TokenPosterior
from flm.samplers.canvas import Canvas
from flm.schema import check

V, L, LEVEL = 2, 2, 1e-5
STATES = torch.tensor(list(itertools.product(range(V), repeat=L)))
JOINT = torch.tensor([[0.42, 0.03], [0.15, 0.40]], dtype=torch.float64)


class ExactDenoiser:
    """p(x_l | the rest of the state), from all sequences."""

    source, schedule = UniformSource(V), LogLinear()

    def __init__(self):
        self.read = []

    def probabilities(self, tokens, kappa):
        q = kappa * torch.eye(V, dtype=torch.float64) + (1 - kappa) / V
        found = torch.stack(((JOINT @ q[:, tokens[:, 1]]).T, (JOINT.T @ q[:, tokens[:, 0]]).T), 1)
        return found / found.sum(-1, keepdim=True)

    def __call__(self, tokens, t):
        self.read.append(tokens.clone())
        p = self.probabilities(tokens, self.schedule.kappa(t[0].double()).item())
        return TokenPosterior(p.log(), torch.eye(V, dtype=torch.float64))


def reverse_posterior(p, now, a, b):
    """q(next | now, p) of each position, (states, L, V): Bayes' rule with p in place of the data, matrices and all."""
    eye = torch.eye(V, dtype=torch.float64)
    to_now = (a / b) * eye + (1 - a / b) / V  # q(now | next)
    return to_now[:, now].permute(1, 2, 0) * (b * p + (1 - b) / V) / (a * p.gather(2, now[..., None]) + (1 - a) / V)


def law_of(sampler, steps):
    """Probability of each of the V^L results, by multiplying transition matrices between all states."""
    denoiser = ExactDenoiser()
    kappas = denoiser.schedule.kappa(torch.linspace(0, 1, steps + 1, dtype=torch.float64)).tolist()
    law = torch.full((len(STATES),), 1 / len(STATES), dtype=torch.float64)
    for i, (a, b) in enumerate(itertools.pairwise(kappas)):
        p = denoiser.probabilities(
            STATES, torch.tensor(denoiser.schedule.kappa(torch.tensor(i / steps)).item(), dtype=torch.float64)
        )
        p = (p.log() / sampler.temperature).softmax(-1)
        if sampler.top_k == 1:
            p = torch.nn.functional.one_hot(p.argmax(-1), V).double()
        if sampler.greedy and i == steps - 1:
            each = torch.nn.functional.one_hot(p.argmax(-1), V).double()
        else:
            each = reverse_posterior(p, STATES, a, b)
            share = sampler.corrected_share(a, b)
            each = (1 - share) * each + share * (b * reverse_posterior(p, STATES, a, 1.0) + (1 - b) / V)
        torch.testing.assert_close(each.sum(-1), torch.ones(len(STATES), L, dtype=torch.float64))
        law = law @ (each[:, 0][:, STATES[:, 0]] * each[:, 1][:, STATES[:, 1]])
    return law


def counts_of(sampler, steps, count=6000, seed=0):
    tokens = sampler(ExactDenoiser(), Canvas.blank(count, L), steps, torch.Generator().manual_seed(seed))
    return torch.bincount(tokens[:, 0] * V + tokens[:, 1], minlength=len(STATES)).double()


def statistic(counts, law):
    expected = law * counts.sum()
    assert counts[law == 0].sum() == 0
    return ((counts - expected) ** 2 / expected)[law > 0].sum().item()


SAMPLERS = {
    "ancestral": UniformSampler(),
    "greedy tail": UniformSampler(noise_removal="greedy"),
    "cold": UniformSampler(temperature=0.6),
    "top-k": UniformSampler(top_k=1),
    "constant": CorrectingSampler("constant", 0.5),
    "cap": CorrectingSampler("cap", 0.3),
    "rescale": CorrectingSampler("rescale", 0.6),
    "rescale, hot": CorrectingSampler("rescale", 1.0, temperature=1.5),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_samples_follow_the_exact_law_of_the_chain(name, steps, monkeypatch):
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 999 * V)
    sampler = SAMPLERS[name]
    law = law_of(sampler, steps)
    assert statistic(counts_of(sampler, steps), law) < chi_square_limit(LEVEL, len(STATES) - 1)


def test_the_exact_posterior_leads_to_the_data():
    """In many steps, with a corrector of fading strength or without; in one step positions know nothing of each other."""
    data = JOINT.flatten()
    for sampler in (SAMPLERS["ancestral"], CorrectingSampler("rescale", 0.02)):
        few, many = law_of(sampler, 2), law_of(sampler, 200)
        assert (many - data).abs().sum() < 0.02 < (few - data).abs().sum()
        assert statistic(counts_of(sampler, 200, 3000), many) < chi_square_limit(LEVEL, 3)
    independent = JOINT.sum(1)[:, None] * JOINT.sum(0)
    assert (law_of(UniformSampler(), 1) - independent.flatten()).abs().max() < 1e-3


def test_marginals_of_one_position_are_exact_whatever_the_steps_and_the_corrector():
    """Chi-square at level 1e-5, 20,000 draws: nothing is approximated for a single position."""
    marginal = torch.tensor([0.83, 0.17], dtype=torch.float64)

    class OnePosition(ExactDenoiser):
        def __call__(self, tokens, t):
            return TokenPosterior(marginal.log().expand(*tokens.shape, V), torch.eye(V, dtype=torch.float64))

    for sampler in (UniformSampler(), CorrectingSampler("constant", 1.0), CorrectingSampler("cap", 0.5)):
        for steps in (1, 3, 10):
            tokens = sampler(OnePosition(), Canvas.blank(20_000, 1), steps, torch.Generator().manual_seed(steps))
            counts = torch.bincount(tokens[:, 0], minlength=V).double()
            assert statistic(counts, marginal) < chi_square_limit(LEVEL, 1)


def test_share_of_the_corrector():
    """sigma / (1 - kappa') with the sigma of ReMDM, by hand."""
    constant, cap, rescale = (CorrectingSampler(rule, 0.1) for rule in ("constant", "cap", "rescale"))
    assert constant.corrected_share(0.3, 0.5) == 0.1
    assert cap.corrected_share(0.3, 0.5) == pytest.approx(0.1 / 0.5)
    assert rescale.corrected_share(0.3, 0.5) == pytest.approx(0.1 / 0.5)  # (1 - 0.5) / 0.3 > 1
    assert cap.corrected_share(0.8, 0.96) == 1.0  # sigma 0.05, the largest there is: more than the noise of that time
    assert rescale.corrected_share(0.8, 0.96) == pytest.approx(0.1 * (0.04 / 0.8) / 0.04)
    assert cap.corrected_share(0.0, 0.5) == pytest.approx(0.2)
    assert [s.corrected_share(0.9, 1.0) for s in (constant, cap, rescale)] == [0, 0, 0]
    assert CorrectingSampler("rescale", 1.0).corrected_share(0.5, 0.9) == 1.0
    assert law_of(CorrectingSampler("constant", 0.0), 3).tolist() == law_of(UniformSampler(), 3).tolist()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("noise_removal", ["ancestral", "greedy"])
def test_given_tokens_are_read_clean_at_every_step_and_come_back(solver, noise_removal):
    canvas = Canvas(
        torch.tensor([[1, 0], [0, 1], [1, 1]]).repeat(30, 1),
        torch.tensor([[False, True], [True, False], [False, False]]).repeat(30, 1),
    )
    denoiser, moments = ExactDenoiser(), []
    sampler = SOLVERS[solver](noise_removal=noise_removal)
    tokens = sampler(denoiser, canvas, 5, torch.Generator().manual_seed(0), moments.append)
    fixed = ~canvas.editable
    assert len(denoiser.read) == 5 and [moment.index for moment in moments] == list(range(5))
    for seen in (*denoiser.read, tokens):
        assert torch.equal(seen[fixed], canvas.tokens[fixed])
    assert len(torch.stack(denoiser.read)[:, canvas.editable].unique()) == V  # the rest does move
    again = sampler(ExactDenoiser(), canvas, 5, torch.Generator().manual_seed(0))
    assert torch.equal(tokens, again)


def test_a_prompt_is_continued_by_its_exact_conditional():
    for first in range(V):
        canvas = Canvas.from_pieces([[first], 1], 8000)
        tokens = UniformSampler()(ExactDenoiser(), canvas, 3, torch.Generator().manual_seed(first))
        # the given token is read as any other is: as one that noise may have replaced, less and less likely as t grows
        counts = torch.bincount(tokens[:, 1], minlength=V).double()
        law = torch.full((V,), 1 / V, dtype=torch.float64)
        kappas = LogLinear().kappa(torch.linspace(0, 1, 4, dtype=torch.float64)).tolist()
        for a, b in itertools.pairwise(kappas):
            states = torch.stack((torch.full((V,), first), torch.arange(V)), 1)
            p = ExactDenoiser().probabilities(states, torch.tensor(a, dtype=torch.float64))
            law = law @ reverse_posterior(p, states, a, b)[:, 1]
        assert statistic(counts, law) < chi_square_limit(LEVEL, V - 1)


def test_probabilities_that_are_drawn_from_are_float64():
    """Of fp32 logits: an fp32 softmax would be off by 1e-7, and draws by inversion pile up where its sums have their steps."""
    size, count = 1000, 400
    logits = torch.randn(size, generator=torch.Generator().manual_seed(0))
    posterior = TokenPosterior(torch.ones(1, count, 1), logits[:, None])
    tokens = torch.arange(count)[None]
    for top_k, top_p in ((None, None), (300, None), (None, 0.7)):
        shaped = replace(posterior, top_k=top_k, top_p=top_p)
        drawn, own = UniformSampler()._draw(shaped, tokens, torch.Generator().manual_seed(0))
        p = logits.double().softmax(-1)
        order = p.argsort(descending=True)
        kept = 300 if top_k else int((p[order].cumsum(0) < 0.7).sum()) + 1 if top_p else size
        p[order[kept:]] = 0
        torch.testing.assert_close(own[0], (p / p.sum())[:count], rtol=1e-12, atol=0)
        assert (p[drawn] > 0).all() and drawn.unique().numel() > 100


@pytest.mark.parametrize(
    "wrong,key",
    [
        (lambda: check(UniformSampler, {"temperature": -1}, "sampling"), "sampling.temperature"),
        (lambda: check(UniformSampler, {"top_k": 0}, "sampling"), "sampling.top_k"),
        (lambda: check(UniformSampler, {"top_p": 1.5}, "sampling"), "sampling.top_p"),
        (lambda: check(UniformSampler, {"noise_removal": "none"}, "sampling"), "sampling.noise_removal"),
        (lambda: check(partial(CorrectingSampler, "cap"), {"corrector": 1.2}, "sampling"), "sampling.corrector"),
        (lambda: UniformSampler()(ExactDenoiser(), Canvas.blank(1, L), 0, torch.Generator()), "sampling.steps"),
    ],
)
def test_mistakes_name_their_key(wrong, key):
    with pytest.raises(ValueError, match=key):
        wrong()
