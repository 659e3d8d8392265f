"""Evidence given chunk by chunk against what is dense, Bayes' rule and the identity that the method stands on."""

import math

import pytest
import torch

import flm.paths.evidence
import flm.posterior
from flm.paths.evidence import Held, LocalEvidence, Noised, embed_evidence

N, V, D = 13, 7, 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noised(seed=5, dtype=torch.float64):
    tokens = torch.randint(V, (N,), generator=generator(1))
    t = torch.rand(N, generator=generator(2), dtype=torch.float64)
    return Noised(tokens, t, V, [seed], dtype)


def evidence(state=None):
    state = noised() if state is None else state
    prior = torch.rand(V, generator=generator(3), dtype=torch.float64).log_softmax(-1)
    return LocalEvidence(state, state.t, prior)


@pytest.fixture(params=[1, 4, 10_000])
def tokens_per_chunk(request, monkeypatch):
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", request.param * V)
    monkeypatch.setattr(flm.paths.evidence, "CELL_ELEMENTS", 3 * V)


def test_a_state_is_the_same_numbers_however_it_is_cut(tokens_per_chunk):
    whole = noised().chunk(slice(0, N))
    for start in range(N):
        for stop in range(start + 1, N + 1):
            assert torch.equal(noised().chunk(slice(start, stop)), whole[start:stop])
    state = noised()
    state.chunk(slice(2, 9)).zero_()  # the reader's own
    assert torch.equal(state.chunk(slice(2, 9)), whole[2:9])
    assert not torch.equal(noised(seed=6).chunk(slice(0, N)), whole)


def test_noise_has_the_law_of_the_path():
    count, t = 4000, 0.3
    state = Noised(torch.full((count,), 2), torch.full((count,), t), V, [0], torch.float64)
    x = state.chunk(slice(0, count))
    onehot = torch.nn.functional.one_hot(torch.tensor(2), V)
    assert (x.mean(0) - t * onehot).abs().max() < 4 * (1 - t) / math.sqrt(count)
    covariance = (x - t * onehot).T @ (x - t * onehot) / count
    assert (covariance - (1 - t) ** 2 * torch.eye(V)).abs().max() < 5 * (1 - t) ** 2 / math.sqrt(count)


def test_evidence_is_bayes_rule_of_one_position():
    found = torch.softmax(evidence().chunk(slice(0, N)), -1)
    state, prior = noised(), evidence().log_prior
    x, t = state.chunk(slice(0, N)), state.t[:, None, None]
    # log N(x; t e_k, (1-t)^2 I) for every k
    distance = (x[:, None] - t * torch.eye(V, dtype=torch.float64)).square().sum(-1)
    bayes = torch.softmax(prior - distance / (2 * (1 - t[..., 0]) ** 2), -1)
    torch.testing.assert_close(found, bayes)


def test_posterior_of_a_joint_law_is_that_of_the_others_plus_own_evidence():
    joint = torch.rand(V, V, V, generator=generator(4), dtype=torch.float64).pow(3)
    joint /= joint.sum()
    t = torch.tensor([0.3, 0.55, 0.7], dtype=torch.float64)  # one a position
    tokens = torch.tensor([1, 5, 2])
    x = Noised(tokens, t, V, [8], torch.float64).chunk(slice(0, 3))
    own = x * (t / (1 - t) ** 2)[:, None]
    gaussian = -(x[:, None] - t[:, None, None] * torch.eye(V, dtype=torch.float64)).square().sum(-1) / (
        2 * (1 - t[:, None]) ** 2
    )
    everything = (joint.log() + gaussian[0][:, None, None] + gaussian[1][:, None] + gaussian[2]).flatten().softmax(0)
    others = (joint.log() + own[0][:, None, None] + own[2]).exp()  # the second position's own left out
    factorised = torch.softmax(others.sum((0, 2)).log() + own[1], -1)
    torch.testing.assert_close(factorised, everything.view(V, V, V).sum((0, 2)))


def test_clean_positions_are_beyond_doubt():
    tokens, t = torch.tensor([3, 4]), torch.tensor([1.0, 0.0], dtype=torch.float64)
    state = Noised(tokens, t, V, [0], torch.float64)
    assert torch.equal(state.chunk(slice(0, 1)), torch.nn.functional.one_hot(tokens[:1], V).double())
    p = torch.softmax(LocalEvidence(state, t, evidence().log_prior).chunk(slice(0, 2)), -1)
    assert p[0, 3] == 1
    torch.testing.assert_close(p[1], evidence().log_prior.exp())  # no evidence at all


def test_reading_and_its_gradient_equal_dense(tokens_per_chunk):
    table = torch.randn(V, D, generator=generator(6), dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(N, D, generator=generator(7), dtype=torch.float64)
    dense = torch.softmax(evidence().chunk(slice(0, N)), -1) @ table
    for state in (noised(), noised()):
        view = embed_evidence(evidence(state), table)
        torch.testing.assert_close(view, dense)
        got, want = (torch.autograd.grad(x, table, upstream, retain_graph=True)[0] for x in (view, dense))
        torch.testing.assert_close(got, want)
    held = Held(noised().chunk(slice(0, N)))
    torch.testing.assert_close(embed_evidence(LocalEvidence(held, noised().t, evidence().log_prior), table), dense)
