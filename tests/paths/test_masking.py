"""Strategies of corruption: their rates and shapes, and the law of masks drawn with their time."""

import pytest
import torch
from chi_square import chi_square_limit

from flm.draws import Draws
from flm.paths.masking import (
    MaskingCurriculum,
    Places,
    Strategies,
    first_masks,
    masks_by_key,
    most_masks,
    window_chance,
    window_masks,
)
from flm.schema import check

LEVEL = 1e-3


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    "size, chances",
    [(2, (0.051317, 0.292893, 0.683772)), (4, (0.025996, 0.159104, 0.437659)), (8, (0.013084, 0.082996, 0.250106))],
)
def test_the_chance_that_a_window_starts(size, chances):
    torch.testing.assert_close(window_chance(double(0.1, 0.5, 0.9), size), double(*chances), atol=5e-7, rtol=0)


@pytest.mark.parametrize("size", [2, 4])
def test_windows_hide_interior_positions_at_the_rate_and_lie_in_what_may_be_hidden(size):
    count, length, sigma = 20_000, 14, 0.4
    maskable = torch.ones(length, dtype=torch.bool)
    maskable[9] = False  # room for exactly one window of 4 behind it
    u = torch.rand(count, length, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    hidden = window_masks(maskable.expand(count, -1), torch.full((count,), sigma, dtype=torch.float64), size, u)
    assert not hidden[:, 9].any()
    rate = hidden.double().mean(0)
    start = 1 - (1 - sigma) ** (1 / size)
    fits = [all(maskable[i : i + size]) and i + size <= length for i in range(length)]
    covers = torch.tensor([sum(fits[max(0, j - size + 1) : j + 1]) for j in range(length)])
    expected = 1 - (1 - start) ** covers.double()
    assert expected[size - 1].item() == pytest.approx(sigma) and expected[0] < sigma
    assert ((rate - expected).abs() < 4.5 * (0.25 / count) ** 0.5).all()
    # every run of hidden positions is at least as long as a window
    for row in hidden[:500].int().tolist():
        runs = [len(run) for run in "".join(map(str, row)).split("0") if run]
        assert all(run >= size for run in runs)


def test_windows_follow_each_sequence_and_may_be_too_long():
    u = torch.rand(2000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maskable = torch.ones(2000, 3, dtype=torch.bool)
    assert not window_masks(maskable, torch.full((2000,), 0.9, dtype=torch.float64), 4, u).any()
    sigma = double(0.0, 0.999).repeat(1000)
    hidden = window_masks(maskable, sigma, 2, u)
    assert not hidden[::2].any() and hidden[1::2].double().mean() > 0.95


def test_prefix_and_suffix_have_their_rates_and_lengths():
    count, length = 40_000, 6
    strategies = Strategies(prefix=0.3, suffix=0.5, windows=0.0, window_sizes=(2,))
    start, end = strategies.part(length, Draws(1).per_sequence(count, 5))
    assert not ((start > 0) & (end < length)).any()  # the end is cut only where there is no prefix
    for lengths, chance in ((start[start > 0], 0.3), (end[end < length], 0.7 * 0.5)):
        assert abs(len(lengths) / count - chance) < 4.5 * (0.25 / count) ** 0.5
        found = torch.bincount(lengths, minlength=length).double()
        expected = len(lengths) / (length - 1)
        assert found[0] == 0 and ((found[1:] - expected) ** 2 / expected).sum() < chi_square_limit(LEVEL, length - 2)
    never = Strategies(0.0, 0.0, 0.0, (2,))
    start, end = never.part(length, torch.zeros(3, 5, dtype=torch.float64))
    assert (start == 0).all() and (end == length).all()
    start, end = Strategies(1.0, 1.0, 0.0, (2,)).part(1, torch.zeros(3, 5, dtype=torch.float64))
    assert (start == 0).all() and (end == 1).all()  # one position alone is always kept


def test_a_curriculum_by_phases_and_in_a_straight_line():
    phases = MaskingCurriculum(100, prefix=[0.01, 0.05, 0.2], suffix=0.25, windows=[0.0, 1.0], window_sizes=[[2], [4, 8]])
    assert [phases.at(step).prefix for step in (0, 33, 34, 66, 67, 100, 10_000)] == [0.01, 0.01, 0.05, 0.05, 0.2, 0.2, 0.2]
    assert phases.at(77).suffix == 0.25 and phases.at(49).window_sizes == (2,) and phases.at(50).window_sizes == (4, 8)
    line = MaskingCurriculum(100, prefix=[0.0, 0.4, 0.2], windows=0.3, linear=True)
    assert [line.at(step).prefix for step in (0, 25, 50, 75, 100)] == pytest.approx([0.0, 0.2, 0.4, 0.3, 0.2])
    assert line.at(60).windows == 0.3
    sizes = phases.at(60)
    assert [sizes.window_size(u) for u in (0.0, 0.49, 0.5, 0.99)] == [4, 4, 8, 8]


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"prefix": 1.5}, {"windows": []}, {"window_sizes": [1, 2]}, {"window_sizes": []}], ids=str
)
def test_a_curriculum_that_cannot_be(options):
    with pytest.raises(ValueError, match=f"masking.{list(options)[0]}"):
        check(MaskingCurriculum, {"steps": 10} | options, "masking")


def test_masks_come_with_the_time_at_which_so_many_stand():
    """Weighed by n / k, kappa and masks are as if each mask were drawn by itself at kappa, with weight n / (n (1 - kappa))."""
    count, n = 60_000, 3
    maskable = torch.tensor([True, True, False, True]).expand(count, -1)
    draws = Draws(2)
    masks, scale, kappa = masks_by_key(maskable, draws.stratified(count), draws.per_sequence(count, 4))
    k = masks.sum(1)
    torch.testing.assert_close(scale, n / k.double())
    assert not masks[:, 2].any() and 0 < kappa.min() and kappa.max() < 1
    for size in (1, 2, 3):  # 1 - kappa given k is Beta(k, n - k + 1)
        sigma = (1 - kappa)[k == size]
        mean, variance = size / (n + 1), size * (n - size + 1) / ((n + 1) ** 2 * (n + 2))
        assert abs(sigma.mean() - mean) < 4.5 * (variance / len(sigma)) ** 0.5
        assert sigma.var().item() == pytest.approx(variance, rel=0.05)
    # which positions does not depend on kappa
    first = masks[:, 0][k == 1]
    late = kappa[k == 1] > kappa[k == 1].median()
    assert abs(first[late].double().mean() - 1 / 3) < 4.5 * (2 / 9 / late.sum()).item() ** 0.5
    _, scale, kappa = masks_by_key(torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2), torch.rand(2, 4).double())
    assert (scale == 0).all() and (kappa == 1).all()


@pytest.mark.parametrize("sigma", [(0.5,) * 64, (0.001,) * 8, (0.0, 0.1, 0.3, 0.9), (1.0, 1.0), (0.02,) * 2000])
def test_more_masks_than_there_is_room_for_are_as_good_as_impossible(sigma):
    """Against the exact law of the number of masks."""
    length, law = 32, torch.ones(1, dtype=torch.float64)
    for chance in sigma:
        many = torch.arange(length + 1, dtype=torch.float64)
        at_one = torch.distributions.Binomial(length, double(chance)).log_prob(many).exp()
        law = torch.nn.functional.conv1d(law[None, None], at_one.flip(0)[None, None], padding=length)[0, 0]
    most = most_masks(double(*sigma), length)
    assert law[most + 1 :].sum() < 1e-13
    mean = length * sum(sigma)
    assert most == len(sigma) * length or most <= mean + 9 * mean**0.5 + 23  # and little is computed for nothing


@pytest.mark.parametrize("most", [3, 4, 6])
def test_values_at_places_go_there_and_back(most):
    positions = torch.tensor([[False, True, False], [True, False, True]])
    places, values = Places(positions, most), torch.arange(1.0, 7).view(2, 3)
    assert places.of(values).shape == (1, most) and places.of(torch.ones(2, 3, 5)).shape == (1, most, 5)
    assert torch.equal(places.spread(places.of(values)), values * positions)
    assert torch.equal(places.spread(places.weight(values)), values * positions) and places.weight(values).sum() == 2 + 4 + 6


def test_first_masks_are_all_of_them_in_order_and_then_others():
    masks = torch.tensor([[False, True, False], [True, False, True]])
    assert first_masks(masks, 4).tolist() == [1, 3, 5, 0]
