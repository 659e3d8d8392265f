"""Uniform numbers that follow a sequence through any split of the global batch."""

import torch
from chi_square import chi_square_limit

from flm.draws import Draws


def test_numbers_do_not_depend_on_the_split_but_on_all_else():
    whole = Draws(3, 5).per_sequence(8, 40)
    for shares in (2, 4, 8):
        parts = [Draws(3, 5, share, shares).per_sequence(8 // shares, 40) for share in range(shares)]
        assert torch.equal(torch.cat(parts), whole)
    again = Draws(3, 5)
    assert torch.equal(again.per_sequence(8, 40), whole)
    others = [again.per_sequence(8, 40), Draws(3, 6).per_sequence(8, 40), Draws(4, 5).per_sequence(8, 40)]
    assert all((other == whole).sum() == 0 for other in others)


def test_numbers_are_uniform_and_independent_of_their_neighbours():
    u = Draws(0).per_sequence(200, 500)
    assert u.dtype == torch.float64 and 0 <= u.min() and u.max() < 1
    cell = (u * 10).long()
    pairs = [(cell[:, :-1], cell[:, 1:]), (cell[:-1], cell[1:])]  # along a sequence, and across two
    for first, second in pairs:
        found = torch.bincount((first * 10 + second).flatten(), minlength=100).double()
        expected = found.sum() / 100
        assert ((found - expected) ** 2 / expected).sum() < chi_square_limit(1e-3, 99)
    # the low bits too
    found = torch.bincount((u * 2**40).long().remainder(64).flatten(), minlength=64).double()
    assert ((found - found.mean()) ** 2 / found.mean()).sum() < chi_square_limit(1e-3, 63)
