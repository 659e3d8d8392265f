import pytest
import torch

from flm.algos.algorithm import Loss
from flm.training.validation import Tally


def data(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=g), torch.rand(count, generator=g), torch.randint(0, 5, (count,), generator=g)


def loss_of(sums, counts, tau):
    return Loss(sums.sum(), sums, counts, tau)


def test_uneven_ranks_add_up():
    nats, tau, tokens = data(50)
    whole, a, b = Tally(), Tally(), Tally()
    for tally, part in ((whole, slice(None)), (a, slice(7)), (b, slice(7, None))):
        tally.add(loss_of((nats * tokens)[part], tokens[part], tau[part]))
    merged = a.report(reduce=lambda sums: sums + b.sums)
    assert merged.mean == pytest.approx(whole.report().mean, rel=1e-12)
    assert merged.by_tau == pytest.approx(whole.report().by_tau, rel=1e-12)
    assert merged.mean == pytest.approx(float((nats * tokens).sum() / tokens.sum()), rel=1e-6)
    third = (tau >= 0.3) & (tau < 0.4)
    expected = float((nats * tokens)[third].sum() / tokens[third].sum())
    assert merged.by_tau[3] == pytest.approx(expected, rel=1e-6)


def test_edges_of_the_clock_and_sequences_without_tokens():
    tally = Tally()
    nan = float("nan")
    tally.add(loss_of(torch.tensor([2.0, 6.0, nan]), torch.tensor([2, 2, 0]), torch.tensor([0.0, 1.0, 0.5])))
    report = tally.report()
    assert report.by_tau == [1.0, *[None] * 8, 3.0] and report.mean == 2.0
    assert set(report.metrics()) == {
        "val/denoising_ce_nats_per_token",
        "val/denoising_ce_nats_tau_0.0-0.1",
        "val/denoising_ce_nats_tau_0.9-1.0",
    }


def test_reference_is_averaged_like_the_model():
    tally = Tally()
    tally.add(loss_of(torch.ones(3), torch.ones(3), torch.tensor([0.05, 0.05, 0.95])))
    report = tally.report(torch.arange(10.0))
    assert report.context_free_mean == pytest.approx((0 + 0 + 9) / 3)
    assert report.metrics()["val/context_free_ce_nats_tau_0.4-0.5"] == 4.0


def test_nothing_seen_is_an_error():
    with pytest.raises(ValueError, match="no token"):
        Tally().report()
