"""Random numbers follow the sequences of a global batch, however it is cut."""

import pytest
import torch

from flm.draws import GROUP, Draws, Rows, rand, randint, randn, scattered

G = 8


def cut(shares, draw):
    """What `draw(draws, count)` gives, for the whole batch."""
    return torch.cat([draw(Draws(3, 5, share, shares), G // shares) for share in range(shares)])


DRAWS = {
    "normal": lambda draws, n: draws.normal(n, 3),
    "second": lambda draws, n: (draws.uniform(n), draws.uniform(n, 2))[1],
    "whole": lambda draws, n: randint(draws.rows, 1000, n, 4),
    "seeds": lambda draws, n: torch.tensor(draws.rows.seeds(n)),
    "stratified": lambda draws, n: (draws.stratified(n), draws.stratified(n))[1],
    "hash": lambda draws, n: draws.per_sequence(n, 5),
}


@pytest.mark.parametrize("name", DRAWS)
def test_numbers_do_not_depend_on_the_cut(name):
    whole = cut(1, DRAWS[name])
    assert len(whole.flatten().unique()) > 0.9 * whole.numel()
    for shares in (2, 4, 8):
        assert torch.equal(cut(shares, DRAWS[name]), whole)


def test_rows_draw_what_they_say():
    source = Draws(0).rows
    z, u, k = randn(source, 200, 50, dtype=torch.float64), rand(source, 200, 50), randint(source, 7, 200, 50)
    assert abs(float(z.mean())) < 0.03 and abs(float(z.std()) - 1) < 0.03 and z.dtype == torch.float64
    assert abs(float(u.mean()) - 0.5) < 0.01 and 0 <= u.min() and u.max() < 1
    assert torch.bincount(k.flatten()).tolist() == pytest.approx([10_000 / 7] * 7, rel=0.15)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_parts_are_the_same_sequences_however_cut(fraction):
    def draw(draws, count):
        split = draws.split(count, fraction)
        found = torch.zeros(count, 3, dtype=torch.float64)
        for which, part in enumerate(split.parts):
            rows = split.order[part.rows]
            found[rows, 0] = float(which)
            found[rows, 1] = part.draws.stratified(len(part))
            found[rows, 2] = part.draws.normal(len(part), dtype=torch.float64)
        assert torch.equal(split.order[split.back], torch.arange(count))
        return found

    whole = cut(1, draw)
    first = G - int(whole[:, 0].sum())
    assert abs(first - fraction * G) < 1
    for which, size in ((0, first), (1, G - first)):  # each part is stratified by itself
        points = whole[whole[:, 0] == which, 1]
        assert (points * size).long().sort().values.tolist() == list(range(size))
    for shares in (2, 4, 8):
        assert torch.equal(cut(shares, draw), whole)


def test_parts_have_the_right_mean():
    sizes = [len(Draws(0, step).split(5, 0.45).parts[0]) for step in range(400)]
    assert set(sizes) == {2, 3} and abs(sum(sizes) / 400 - 2.25) < 4 * (0.25 * 0.75 / 400) ** 0.5


def test_an_empty_part_is_filled_on_request():
    empty = [Draws(0, 0, share, 2).split(1, 0.5, fill=True) for share in range(2)]
    for split in empty:
        assert [len(part) for part in split.parts] == [1, 1] and split.counted.sum() == 1
        assert split.counted[split.back].item() == 1
    assert [len(part) for part in Draws(0).split(2, 1.0, fill=True).parts] == [2, 0]  # nobody has any


def test_examples_keep_their_numbers_in_any_batch():
    """As in validation: the batch has no end, and the examples come in any order."""
    numbers = list(range(3 * GROUP))
    whole = Draws(1, places=numbers)
    times, noise = whole.stratified(len(numbers)), whole.normal(len(numbers), 2)
    some = [5, 130, 64, 7]
    part = Draws(1, places=some)
    assert torch.equal(part.stratified(4), times[some]) and torch.equal(part.normal(4, 2), noise[some])
    for group in times.view(3, GROUP):
        assert (group * GROUP).long().sort().values.tolist() == list(range(GROUP))
    assert not torch.equal(times[:GROUP], times[GROUP : 2 * GROUP])
    with pytest.raises(ValueError, match="4"):
        part.stratified(3)


def test_scattered_numbers_are_even_and_their_keys_own():
    keys = torch.arange(2000)[:, None], torch.arange(50)
    found = scattered(*keys)
    assert torch.equal(scattered(keys[0][7:9], keys[1]), found[7:9]) and len(found.unique()) == found.numel()
    counts = torch.bincount((found % 11).flatten())
    assert float((counts - 1e5 / 11).square().sum() / (1e5 / 11)) < 30  # chi-square of 10 degrees


def test_a_part_of_a_source_is_apart_from_it():
    source = Rows(0, torch.device("cpu"), range)
    part = source.part([1, 3], 4)
    drawn = randn(part, 2, 3)
    assert not torch.equal(drawn, randn(source, 4, 3)[[1, 3]])
