"""MPDC: its pairs of states, its divergences against dense ones, and where the exact posterior and a constant one stand."""

from functools import partial

import pytest
import torch
from algos.dense_flow_map import rough, small_dit
from algos.exact_world import correlated
from algos.token_world import ExactTokens
from torch import nn
from torch.nn.functional import one_hot

import flm.posterior
from flm.algos.algorithm import Batch
from flm.algos.dfm import DFM
from flm.draws import Draws
from flm.few_step.mpdc import DIVERGENCES, MPDC
from flm.posterior import TokenPosterior

V = 5
WIDE = 40_000


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_the_cleaner_state_is_drawn_from_the_bridge(source):
    """Given the noisier state and the true token, by the chi-square; and the noisier state has its own law."""
    algorithm = MPDC(small_dit(V, 1), V, 1, source=source) if source == "uniform" else MPDC(small_dit(V + 1, 1), V, 1)
    kappa_s, kappa_t, token, states = 0.7, 0.3, 2, V + (source == "mask")
    batch = Batch(torch.full((WIDE, 1), token), torch.ones(WIDE, 1))
    times = [torch.full((WIDE,), t, dtype=torch.float64) for t in (kappa_t, kappa_s)]
    ahead, state = algorithm.coupled(batch, *times, Draws(0))
    noise = torch.full((V,), 1 / V) if source == "uniform" else one_hot(torch.tensor(V), V + 1).double()
    kept = kappa_t / kappa_s
    start = kappa_s * one_hot(torch.tensor(token), states) + (1 - kappa_s) * noise  # q(x_s | y)
    step = kept * torch.eye(states) + (1 - kept) * noise  # q(x_t | x_s)
    joint = start[:, None] * step
    counts = torch.zeros(states, states).index_put_((ahead[:, 0], state[:, 0]), torch.ones(WIDE), accumulate=True)
    assert counts[joint == 0].sum() == 0
    expected = (joint * WIDE)[joint > 0]
    statistic = ((counts[joint > 0] - expected) ** 2 / expected).sum()
    assert statistic < (joint > 0).sum() + 6 * (2 * (joint > 0).sum()) ** 0.5
    if source == "mask":  # a masked position is revealed with this probability
        revealed = counts[token, V] / counts[:, V].sum()
        assert revealed.item() == pytest.approx((kappa_s - kappa_t) / (1 - kappa_t), abs=0.01)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_and_its_gradient_are_the_dense_ones(name, monkeypatch):
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 4 * V)
    generator = torch.Generator().manual_seed(0)
    hidden, goal = (torch.randn(3, 4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    table = torch.randn(V, 6, generator=generator, dtype=torch.float64)
    weight = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    hidden.requires_grad_(True)
    total, values = DIVERGENCES[name](TokenPosterior(hidden, table, softcap=2.0), TokenPosterior(goal, table), weight)
    p = (2 * torch.tanh(hidden @ table.T / 2)).softmax(-1)
    q = (goal @ table.T).softmax(-1)
    m = (p + q) / 2
    dense = {
        "forward": -(q * p.log()).sum(-1),
        "reverse": (p * (p / q).log()).sum(-1),
        "jsd": ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2,
    }[name]
    torch.testing.assert_close(values, dense.detach())
    (want,) = torch.autograd.grad((dense * weight).sum(), hidden)
    torch.testing.assert_close(torch.autograd.grad(total, hidden)[0], want)


class Shifted(nn.Module):
    """The exact posterior of a world, or a constant, with logits of its own for each state that training may add."""

    def __init__(self, exact: ExactTokens, knows: bool):
        super().__init__()
        self.exact, self.knows = exact, knows
        self.real_vocab_size, self.mask_id = exact.real_vocab_size, exact.mask_id
        self.shift = nn.Parameter(torch.zeros(9, 2, 2, dtype=torch.float64))

    def forward(self, tokens, t=None, documents=None):
        found = self.exact(tokens, t, documents)
        hidden = found.hidden if self.knows else torch.zeros_like(found.hidden)
        return TokenPosterior(hidden + self.shift[3 * tokens[:, 0] + tokens[:, 1]], found.table)


def gradient(source, knows, **options):
    """Mean and standard error of the gradient of each state's logits, by 40 batches."""
    world = correlated("identity")
    found = []
    for seed in range(40):
        make = lambda vocab_size: Shifted(ExactTokens(world, DFM(small_dit(3, 2), 2, 2).schedule, source == "mask"), knows)
        algorithm = MPDC(make, 2, 2, source=source, **options)
        batch = world.batch(2000, torch.Generator().manual_seed(seed))
        (slope,) = torch.autograd.grad(algorithm.loss(batch, Draws(seed)).total, algorithm.backbone.shift)
        found.append(slope)
    found = torch.stack(found)
    return found.mean(0), found.std(0) / 40**0.5


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_the_exact_posterior_is_where_the_gradient_is_0(source):
    for anchor in (0.2, 0.0):
        mean, error = gradient(source, True, anchor_share=anchor)
        assert (mean.abs() < 5 * error + 1e-6).all() and error.max() < 0.01


def test_a_constant_is_consistent_with_itself_and_the_anchor_alone_moves_it():
    mean, error = gradient("uniform", False, anchor_share=0.0)
    assert mean.abs().max() < 1e-12
    mean, error = gradient("uniform", False, anchor_share=0.2)
    assert (mean.abs() > 10 * error).any()


def test_the_gradient_goes_through_the_noisier_state_alone():
    """Of what the network says at the cleaner state nothing is learned: with it fixed, loss and gradient are the same."""
    torch.manual_seed(0)
    algorithm = MPDC(partial(small_dit(V, 3)), V, 3, source="uniform", divergence="reverse", anchor_share=0.0)
    rough(algorithm.backbone, 1, 0.3)
    batch = Batch(torch.randint(V, (6, 3), generator=torch.Generator().manual_seed(1)), torch.ones(6, 3))
    calls = []
    algorithm.backbone.register_forward_pre_hook(lambda module, inputs: calls.append((inputs[0], torch.is_grad_enabled())))
    algorithm.loss(batch, Draws(3)).total.backward()
    assert [enabled for _, enabled in calls] == [False, True]
    assert (calls[0][0] == batch.tokens).sum() > (calls[1][0] == batch.tokens).sum()
