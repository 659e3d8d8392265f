"""Verify by noising again: drifts of the spec's toy world, the law of what is kept, and every family of samplers."""

import itertools

import pytest
import torch
from every_algorithm import build
from test_bridge import OnePosition

from flm.measures.film import FilmStrip
from flm.samplers.canvas import Canvas
from flm.samplers.fresh_noise import BridgeSampler
from flm.samplers.options import sampler_for
from flm.samplers.verified import Verifiable, Verification, Verified

PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drifts(count, seed):
    """Of each token, by direct computation: mean and draws of -log p(y | 0.4 onehot(y) + 0.6 n)."""
    noise = torch.randn(count, 3, 3, generator=generator(seed), dtype=torch.float64)
    x = 0.4 * torch.eye(3, dtype=torch.float64) + 0.6 * noise
    return -(PRIOR.log() + 0.4 * x / 0.36).log_softmax(-1).diagonal(dim1=1, dim2=2)


def test_the_drift_favours_the_frequent_token_by_what_the_spec_says():
    verified = Verified(BridgeSampler(), Verification(candidates=2))
    count = 40_000
    for y, want in enumerate((0.6130, 1.0464, 1.4051)):
        tokens = torch.full((count, 1), y)
        found = verified.drift(OnePosition(), Canvas.blank(count, 1), tokens, generator(y))
        assert abs(found.mean() - want) < 4 * found.std() / count**0.5
        # more noises of a candidate change the spread alone
        judge = Verified(BridgeSampler(), Verification(2, verify_draws=8))
        many = judge.drift(OnePosition(), Canvas.blank(4000, 1), tokens[:4000], generator(9))
        assert abs(many.mean() - want) < 0.05 and many.std() < 0.5 * found.std()


@pytest.mark.parametrize("draws", [1, 8])
def test_the_bias_of_keeping_the_least_drift_is_measured(draws):
    """The model is exact, so any law but the data's is bias: best of two has (0.66, 0.24, 0.10), of eight draws each (0.74,
    0.21, 0.05)."""
    count = 40_000
    direct = drifts(count * draws, 5).view(draws, count, 3).mean(0), drifts(count * draws, 6).view(draws, count, 3).mean(0)
    want = torch.zeros(3, dtype=torch.float64)
    for a, b in itertools.product(range(3), repeat=2):
        first = (direct[0][:, a] <= direct[1][:, b]).double().mean()
        want[a] += PRIOR[a] * PRIOR[b] * first
        want[b] += PRIOR[a] * PRIOR[b] * (1 - first)
    sampler = Verified(BridgeSampler(), Verification(2, verify_draws=draws))
    tokens = sampler(OnePosition(), Canvas.blank(count, 1), 1, generator(7))
    law = torch.bincount(tokens[:, 0], minlength=3) / count
    assert (law - want).abs().max() < 0.012
    assert law[0] > 0.6 and law[2] < 0.13
    if draws == 8:
        assert law[0] > 0.7  # what is surer of the drift is more biased: with no noise left it is (0.75, 0.21, 0.04)


def test_accepted_texts_stay_and_no_more_are_made_once_all_are():
    calls = []

    class Counting(BridgeSampler):
        def __call__(self, *inputs):
            calls.append(1)
            return super().__call__(*inputs)

    world, canvas = OnePosition(), Canvas.blank(300, 1)
    Verified(Counting(), Verification(9, accept_below=1e9))(world, canvas, 1, generator())
    assert len(calls) == 1
    calls.clear()
    tokens = Verified(Counting(), Verification(9, accept_below=0.0))(world, canvas, 1, generator())
    assert len(calls) == 9 and (tokens == 0).double().mean() > 0.85  # the least of nine
    first = BridgeSampler()(world, canvas, 1, generator())
    loose = Verified(BridgeSampler(), Verification(9, accept_below=0.9))(world, canvas, 1, generator())
    drift = Verified(BridgeSampler(), Verification(2))
    repeat = generator()
    BridgeSampler()(world, canvas, 1, repeat)
    accepted = drift.drift(world, canvas, first, repeat) < 0.9
    assert torch.equal(loose[accepted], first[accepted]) and not torch.equal(loose, first)


def test_who_watches_sees_one_candidate_and_every_evaluation():
    """So that a film is of one text, and who looks at the clock can end the run between any two evaluations."""
    seen, film, world, canvas = [], FilmStrip(), OnePosition(), Canvas.blank(2, 1)

    def on_step(moment):
        seen.append(moment.index)
        film(moment)

    Verified(BridgeSampler(), Verification(3, verify_draws=2))(world, canvas, 2, generator(), on_step)
    assert seen == [0, 1] + [1] * (2 + 2 * (2 + 2)) and [frame.index for frame in film.frames] == [0, 1]


REREADING = ["flm", "flm evidence", "fmlm", "mdlm", "dfm", "duo", "kl_flow", "kl_flow_map"]


@pytest.mark.parametrize("name", [*REREADING, "ar", "flow_lm", "flm_distill"])
def test_every_sampler_that_can_reread_verifies_and_others_refuse(name):
    """One candidate is what there was, bit by bit; of eight, the kept ones drift less, and given tokens stay."""
    overrides = ["algo.reads=evidence"] if "evidence" in name else []
    algorithm = build(name.split()[0], overrides).eval()
    canvas = Canvas.from_pieces([[5, 6], 3, [7], 2], 6)
    if name not in REREADING:
        with pytest.raises(ValueError, match="sampling.candidates"):
            sampler_for(algorithm, {"candidates": 2}, "sampling")
        return
    plain = algorithm.generate(canvas, 2, generator(1))
    assert torch.equal(plain, algorithm.generate(canvas, 2, generator(1), candidates=1))
    with pytest.raises(ValueError, match="sampling.verify_tau is for sampling.candidates"):
        algorithm.sampler(verify_tau=0.3)
    kept = algorithm.generate(canvas, 2, generator(1), candidates=8)
    assert torch.equal(kept[~canvas.editable], canvas.tokens[~canvas.editable]) and not torch.equal(kept, plain)
    kind = next(iter(algorithm.samplers.values()))
    assert isinstance(kind, Verifiable)
    judge = Verified(kind(), Verification(2, verify_draws=16))
    before, after = (judge.drift(algorithm.denoiser(), canvas, tokens, generator(3)).mean() for tokens in (plain, kept))
    assert after < before
