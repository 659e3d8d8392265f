"""The law of training times: closed forms, noise, what it leaves alone, and one law however a batch is cut."""

import math
from itertools import product

import pytest
import torch
from every_algorithm import build, ragged_batch

from flm.draws import Draws
from flm.few_step.time_law import AdaptiveTimeLaw, density_knots, falling, inverse, uniform_knots

U = torch.linspace(0, 1, 201, dtype=torch.float64)


def learned(loss_at, draws=10_000, noise=0.0, **options):
    """A law after so many sequences of one token at uniform times."""
    law = AdaptiveTimeLaw(start=1, every=1, uniform_share=1e-9, **options)
    generator = torch.Generator().manual_seed(0)
    tau = (torch.arange(draws, dtype=torch.float64) + torch.rand(draws, generator=generator, dtype=torch.float64)) / draws
    nats = loss_at(tau) + noise * torch.randn(draws, generator=generator, dtype=torch.float64)
    law.learn(tau, nats, torch.ones_like(tau))
    return law


def test_times_are_as_dense_as_the_loss_falls():
    """H = 1 - t^2 has q = 2 t, so u goes to sqrt(u); H = (1 - t)^3 to 1 - (1 - u)^(1/3)."""
    for loss_at, exact in ((lambda t: 1 - t**2, U.sqrt()), (lambda t: (1 - t) ** 3, 1 - (1 - U) ** (1 / 3))):
        times = learned(loss_at)(U, 1)
        # within a bin of a fiftieth, wherever the density is not nearly 0
        assert (times - exact)[20:-20].abs().max() < 1e-2 and (times - exact).abs().max() < 0.06
    assert (learned(lambda t: 1 - t)(U, 1) - U).abs().max() < 2e-3  # the bins at the ends too
    noisy = learned(lambda t: 1 - t**2, noise=0.2, bins=20)(U, 1)
    assert (noisy - U.sqrt()).abs().mean() < 2e-2


def test_a_loss_that_falls_nowhere_leaves_times_alike():
    for loss_at in (torch.ones_like, lambda t: t):
        torch.testing.assert_close(learned(loss_at)(U, 1), U, rtol=0, atol=1e-12)


def test_means_that_fall_are_the_nearest_ones():
    """Against all ways of cutting the bins into blocks of one mean."""
    generator, size = torch.Generator().manual_seed(1), 7
    for _ in range(3):
        counts = torch.randint(1, 9, (size,), generator=generator).double()
        means = torch.linspace(1, 0, size, dtype=torch.float64)
        means = means + 0.5 * torch.randn(size, generator=generator, dtype=torch.float64)
        tried = []
        for cuts in product((0, 1), repeat=size - 1):
            block = torch.tensor((0, *cuts)).cumsum(0)
            total, weight = (torch.zeros(size, dtype=torch.float64).index_add(0, block, x) for x in (means * counts, counts))
            fitted = (total / weight.clamp_min(1))[block]
            if (fitted.diff() <= 0).all():
                tried.append((float((counts * (fitted - means).square()).sum()), fitted))
        found = falling(means * counts, counts)
        assert not torch.equal(found, means)
        torch.testing.assert_close(found, min(tried, key=lambda one: one[0])[1], rtol=0, atol=1e-12)


def test_the_inverse_of_a_distribution_function_gives_its_times_back():
    knots = density_knots(torch.tensor([9.0, 5.0, 5.0, 1.0], dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    assert knots[0] == 0 and knots[-1] == 1 and (knots.diff() >= 0).all()
    times = uniform_knots(4)
    rising = torch.cat([knots.diff() > 0, torch.tensor([True])])
    torch.testing.assert_close(inverse(knots, knots)[rising], times[rising], rtol=0, atol=1e-12)


def test_the_uniform_law_keeps_its_share():
    """No bin is drawn less often than that: of a loss that only falls in the first half."""
    law = learned(lambda t: (0.5 - t).clamp_min(0))
    law.uniform_share = 0.2
    times = law(torch.rand(40_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64), 1)
    assert float((times > 0.6).double().mean()) == pytest.approx(0.4 * 0.2, abs=4 * math.sqrt(0.08 / 40_000))


def test_it_waits_for_its_start_and_for_every_bin():
    law = AdaptiveTimeLaw(bins=4, start=10, every=5)
    law.learn(torch.tensor([0.1, 0.4]), torch.tensor([3.0, 1.0]), torch.ones(2))
    assert torch.equal(law(U, 9), U) and torch.equal(law(U, 10), U)  # two bins are empty
    law.learn(torch.tensor([0.6, 0.9]), torch.tensor([0.5, 0.1]), torch.ones(2))
    assert torch.equal(law(U, 10), U)  # what the first micro-batch of a step had is what they all have
    first = law(U, 15)
    assert not torch.equal(first, U)
    law.learn(torch.tensor([0.9]), torch.tensor([500.0]), torch.ones(1))
    assert torch.equal(law(U, 19), first) and not torch.equal(law(U, 20), first)


def test_micro_batches_have_one_law_and_validation_none():
    """Two halves of each global batch, against the whole: the same times, and after some steps the same law."""
    options = "algo.time_law={_target_: flm.few_step.time_law.AdaptiveTimeLaw, start: 0, every: 2, bins: 3}"
    whole, cut = (build("flm", [options]) for _ in range(2))
    batch, halves = ragged_batch(), [torch.arange(4), torch.arange(4, 8)]
    for step in range(8):
        loss = whole.loss(batch, Draws(5, step))
        parts = [cut.loss(batch.rows(rows), Draws(5, step, share, 2)) for share, rows in enumerate(halves)]
        torch.testing.assert_close(torch.cat([part.tau for part in parts]), loss.tau, rtol=0, atol=1e-12)
        torch.testing.assert_close(sum(part.sum for part in parts), loss.sum, rtol=1e-9, atol=0)
    assert whole.time_law.estimates == 4 and not torch.equal(whole.time_law.knots, uniform_knots(3))
    plain = build("flm")
    held_out = [model.validation_loss(batch, Draws(6)) for model in (whole, plain)]
    assert torch.equal(held_out[0].tau, held_out[1].tau) and torch.equal(held_out[0].sums, held_out[1].sums)
