"""Every target lies in the scored part of exactly one window."""

import math

import pytest
import torch

from flm.data.byte_table import ByteTable
from flm.golf.sliding_window import windows
from flm.likelihood.bits_per_byte import ByteTally


@pytest.mark.parametrize("length,stride", [(8, 3), (8, 8), (8, 1), (1, 1), (5, 4)])
def test_each_target_once_with_the_context_promised(length, stride):
    for total in range(0, 40):
        found = list(windows(total, length, stride))
        scored = [i for window in found for i in range(window.scored_from, window.end)]
        assert scored == list(range(total))
        assert len(found) == (0 if total == 0 else 1 + max(0, math.ceil((total - length) / stride)))
        for window in found:
            assert 1 <= len(window) <= length and window.end > window.scored_from
            assert window.first_scored == window.scored_from - window.start
            if window.start:
                assert window.first_scored >= length - stride


def test_golden_counts():
    found = list(windows(5000, 2048, 64))
    # of the published 62,021,632 targets the same rule makes 969,057 windows
    assert 1 + math.ceil((62_021_632 - 2048) / 64) == 969_057
    assert (len(found), sum(window.end - window.scored_from for window in found)) == (48, 5000)


@pytest.mark.parametrize("stride", [0, 9])
def test_strides_that_would_leave_targets_out(stride):
    with pytest.raises(ValueError, match="stride"):
        next(windows(20, 8, stride))


def test_tally_divides_once():
    # ids: 0 begins, 1 a word with a space before it (3 + 1 bytes), 2 one byte, no space
    table = ByteTable(torch.tensor([0, 3, 1]), torch.tensor([False, True, False]), torch.tensor([True, False, False]))
    tally = ByteTally(table)
    tally.add(torch.tensor([1.0, 2.0]), torch.tensor([0, 1]), torch.tensor([2, 0]))  # 0 bytes, then 3: no space after 0
    tally.add(torch.tensor([[4.0, 50.0]]), torch.tensor([[1, 1]]), torch.tensor([[2, 1]]), torch.tensor([[True, False]]))
    assert (tally.num_tokens, tally.num_bytes) == (3, 7)
    assert tally.nats_per_token == pytest.approx(7 / 3)
    assert tally.bits_per_byte == pytest.approx(7 / math.log(2) / 7)
    assert tally.reduced(lambda sums: 2 * sums).bits_per_byte == pytest.approx(tally.bits_per_byte)


def test_logged_pair_of_the_track():
    table = ByteTable(torch.tensor([0]), torch.tensor([False]), torch.tensor([False]))
    tokens = 100_000
    tally = ByteTally(table, torch.tensor([1.93630746 * tokens, tokens, 2.43592 * tokens], dtype=torch.float64))
    assert tally.bits_per_byte == pytest.approx(1.14679, abs=1e-5)
    uniform = ByteTally(table, torch.tensor([math.log(1024) * tokens, tokens, 2.43592 * tokens], dtype=torch.float64))
    assert uniform.bits_per_byte == pytest.approx(4.1052, abs=1e-4)
