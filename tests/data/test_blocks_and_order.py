import hashlib
import zlib

import numpy as np
import pytest
import torch

from flm.data.blocks import Frame, TokenBlocks, frame_of
from flm.data.cache import TokenStream
from flm.data.order import EvaluationShare, ExampleOrder, Permutation, ShareSampler
from flm.data.tokenizers import ByteTokenizer


@pytest.fixture
def stream(tmp_path):
    raw, counts = np.arange(103, dtype="<u2").tobytes(), np.ones(103, dtype="<i8").tobytes()
    (tmp_path / "a.bin").write_bytes(raw)
    (tmp_path / "counts.bin").write_bytes(counts)
    shards = [("a.bin", 103, f"{zlib.crc32(raw):08x}")]
    return TokenStream(tmp_path, shards, np.dtype("<u2"), ("counts.bin", hashlib.sha256(counts).hexdigest()))


def test_plain_blocks_are_consecutive_and_the_rest_is_dropped(stream):
    blocks = TokenBlocks(stream, 10)
    assert len(blocks) == 10 and blocks[0].dtype == torch.int64
    assert torch.cat([blocks[i] for i in range(10)]).tolist() == list(range(100))
    with pytest.raises(IndexError):
        blocks[10]


def test_framed_blocks_hold_two_tokens_fewer(stream):
    tokenizer = ByteTokenizer().build(lambda: iter(()))
    tokenizer.bos_id, tokenizer.eos_id = 7, 8
    blocks = TokenBlocks(stream, 10, frame_of("bos_eos", tokenizer))
    assert len(blocks) == 12
    assert blocks[0].tolist() == [7, *range(8), 8] and blocks[11].tolist() == [7, *range(88, 96), 8]
    expected = torch.bincount(torch.cat([blocks[i] for i in range(12)]), minlength=110)
    assert torch.equal(blocks.token_counts(110), expected)
    assert len(frame_of("plain", tokenizer)) == 0
    assert torch.equal(TokenBlocks(stream, 10).token_counts(110), (torch.arange(110) < 100).long())


def test_impossible_blocks(stream):
    with pytest.raises(ValueError, match="103 tokens do not fill one block of model.length=104"):
        TokenBlocks(stream, 104)
    assert len(TokenBlocks(stream, 103)) == 1 == len(TokenBlocks(stream, 105, Frame((1,), (2,))))
    with pytest.raises(ValueError, match="leaves no room"):
        TokenBlocks(stream, 2, Frame((1,), (2,)))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_permutation_is_a_bijection(count):
    permutation = Permutation(count, seed=3)
    assert sorted(map(permutation, range(count))) == list(range(count)) and len(permutation) == count
    for outside in (-1, count):
        with pytest.raises(IndexError):
            permutation(outside)


def test_permutation_of_more_items_than_memory_holds():
    permutation = Permutation(10**15, seed=1)
    places = [permutation(i) for i in range(2000)]
    assert len(set(places)) == 2000 and 0 <= min(places) and max(places) < 10**15
    # uniform over the range: mean within 4 standard errors
    assert abs(np.mean(places) / 1e15 - 0.5) < 4 / np.sqrt(12 * 2000)


def test_permutation_is_uniform_over_seeds():
    count, seeds = 12, 3000
    where, pairs = np.zeros((count, count)), np.zeros((count, count))
    for seed in range(seeds):
        permutation = Permutation(count, seed)
        places = [permutation(i) for i in range(count)]
        where[range(count), places] += 1
        pairs[places[4], places[5]] += 1
    expected = seeds / count
    assert ((where - expected) ** 2 / expected).sum() < 121 + 5 * np.sqrt(2 * 121)
    off = ~np.eye(count, dtype=bool)
    expected = seeds / (count * (count - 1))
    assert ((pairs[off] - expected) ** 2 / expected).sum() < 131 + 5 * np.sqrt(2 * 131)


def test_neighbours_do_not_stay_neighbours():
    permutation = Permutation(4096, seed=9)
    places = np.array([permutation(i) for i in range(4096)])
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.07
    assert np.mean(np.abs(np.diff(places)) == 1) < 0.005


def test_order_visits_everything_once_per_epoch_and_epochs_differ():
    order = ExampleOrder(50, seed=5)
    epochs = [[order(k) for k in range(50 * e, 50 * e + 50)] for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert [ExampleOrder(50, seed=5)(k) for k in (120, 3, 77)] == [epochs[2][20], epochs[0][3], epochs[1][27]]
    assert [ExampleOrder(50, seed=6)(k) for k in range(50)] != epochs[0]


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (1, 4), (2, 2), (4, 1), (3, 4), (12, 1)])
def test_shares_make_up_the_same_global_batch(world, accumulation):
    total, count = 12 * 4, 100
    size = total // (world * accumulation)
    order = ExampleOrder(count, seed=2)
    expected = [[order(k) for k in range(s * total, (s + 1) * total)] for s in range(2, 6)]
    samplers = [ShareSampler(ExampleOrder(count, seed=2), size, 2, 6, rank, world, accumulation) for rank in range(world)]
    parts = [list(sampler) for sampler in samplers]
    assert all(len(part) == len(sampler) == 4 * accumulation for part, sampler in zip(parts, samplers, strict=True))
    for step in range(4):
        # share j = rank * accumulation + micro
        shares = [part[step * accumulation + micro] for part in parts for micro in range(accumulation)]
        assert [index for share in shares for index in share] == expected[step]


@pytest.mark.parametrize(("world", "items"), [(1, None), (2, None), (3, None), (4, 5), (2, 1)])
def test_evaluation_shares_hold_each_item_once(stream, world, items):
    blocks = TokenBlocks(stream, 10)
    shares = [EvaluationShare(blocks, rank, world, items) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    rows = [share[i] for share in shares for i in range(len(share))]
    with pytest.raises(IndexError):
        shares[0][len(shares[0])]
    seen = sorted(int(block[0]) // 10 for block, weight, _ in rows if weight == 1)
    wanted = 10 if items is None else items
    assert seen == [i * 10 // wanted for i in range(wanted)]
    numbers = {number: int(block[0]) // 10 for block, weight, number in rows if weight == 1}
    assert numbers == dict(enumerate(seen))  # whichever process has them
    assert sorted({weight for _, weight, _ in rows}) in ([1.0], [0.0, 1.0])
    assert len(rows) - len(seen) < world


def test_evaluation_asking_for_more_than_there_is(stream):
    assert len(EvaluationShare(TokenBlocks(stream, 10), max_items=50)) == 10
