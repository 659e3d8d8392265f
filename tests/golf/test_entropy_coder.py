"""Codes come back, and take as many bytes as their entropy."""

import numpy as np
import pytest

from flm.golf.entropy_coder import TOTAL, decode, encode, expected_bytes, frequencies


def arrays(seed=0):
    """Of unlike sizes and laws: none, one, all alike, all 256, a rare one among many, wide and narrow."""
    rng = np.random.default_rng(seed)
    rare = np.zeros(70_000, np.uint8)
    rare[rng.integers(70_000)] = 3
    wide = np.round(5.3 * rng.normal(size=300_000)).astype(np.int8).view(np.uint8)
    narrow = np.round(0.4 * rng.normal(size=50_001)).astype(np.int8).view(np.uint8)
    none, alike = np.empty(0, np.uint8), np.full(999, 7, np.uint8)
    return [none, wide, np.array([255], np.uint8), alike, np.arange(256, dtype=np.uint8), rare, narrow]


def entropy_bytes(codes):
    shares = np.bincount(codes, minlength=256) / max(len(codes), 1)
    return -(shares[shares > 0] * np.log2(shares[shares > 0])).sum() * len(codes) / 8


@pytest.mark.parametrize("chosen", [slice(None), slice(1, 2), slice(0, 1), slice(2, 3), slice(3, 6)])
def test_they_come_back(chosen):
    given = arrays()[chosen]
    words, tables = encode(given)
    found = decode(words, tables, [len(codes) for codes in given])
    assert all(np.array_equal(a, b) for a, b in zip(given, found, strict=True))


def test_they_take_what_their_entropy_says():
    given = arrays()
    words, tables = encode(given)
    least = sum(map(entropy_bytes, given))
    assert least < words.nbytes < 1.004 * least + 4 * 64
    expected = expected_bytes([np.bincount(codes, minlength=256) for codes in given])
    assert words.nbytes < expected < 1.004 * words.nbytes + 1000  # and the tables
    assert expected_bytes([]) == 0
    assert words.nbytes < 0.997 * _zstandard(given)


def _zstandard(given):
    zstandard = pytest.importorskip("zstandard")
    return len(zstandard.ZstdCompressor(level=1).compress(np.concatenate(given).tobytes()))


def test_frequencies_add_up_and_leave_none_out():
    rng = np.random.default_rng(1)
    every = np.ones(256, np.int64)
    every[9] = 10**9  # 255 codes that would round to nothing
    for counts in (every, np.eye(256, dtype=np.int64)[4], np.zeros(256, np.int64), rng.integers(0, 50, 256)):
        found = frequencies(counts)
        assert found.sum() == TOTAL and ((found > 0) >= (counts > 0)).all()
    flat = frequencies(np.full(256, 7))
    assert (flat == TOTAL // 256).all()


def test_what_is_damaged_is_refused():
    given = arrays()[1:2]
    words, tables = encode(given)
    sizes = [len(given[0])]
    with pytest.raises(ValueError, match="cut short"):
        decode(words[:-5], tables, sizes)
    with pytest.raises(ValueError, match="do not end"):
        decode(np.append(words, words[-1]), tables, sizes)
    other = tables.copy()
    other[0, 0] += 1
    with pytest.raises(ValueError, match="not whole"):
        decode(words, other, sizes)
    with pytest.raises(ValueError, match="not whole"):
        decode(words[:3], tables, sizes)
    swapped = tables[:, ::-1].copy()
    with pytest.raises(ValueError, match="cut short|do not end"):
        decode(words, swapped, sizes)
