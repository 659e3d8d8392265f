"""The track's shard files, and a folder of them as a corpus."""

import struct
from pathlib import Path

import numpy as np
import pytest

from flm.data.byte_table import ByteTable
from flm.data.module import TextDataModule
from flm.data.tokenizers import ByteTokenizer, TokenizerBuilder
from flm.golf.shard_corpus import TokenShardCorpus
from flm.golf.shard_files import ShardStream, token_count, write_shard, write_shards
from flm.tasks.held_out import held_out_blocks


class BytesThatBegin(TokenizerBuilder):
    """The bytes, each document begun by 256 as the track's files are."""

    def build(self, documents, cache_dir=None, source=None):
        tokenizer = ByteTokenizer().build(documents)
        tokenizer.begins_documents = True
        return tokenizer


def test_layout_of_a_file_to_the_byte(tmp_path):
    path = tmp_path / "x_val_000000.bin"
    write_shard(path, np.array([1, 65535, 258]))
    assert path.read_bytes() == struct.pack("<3i", 20240520, 1, 3) + bytes(1024 - 12) + b"\x01\x00\xff\xff\x02\x01"
    assert token_count(path) == 3


@pytest.mark.parametrize(
    "change", [lambda raw: raw[:-1], lambda raw: raw + b"\0\0", lambda raw: b"\0" + raw[1:], lambda raw: raw[:100]]
)
def test_damaged_files_are_refused(tmp_path, change):
    path = tmp_path / "x_val_000000.bin"
    write_shard(path, np.arange(50))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match="x_val_000000.bin"):
        token_count(path)


def test_ids_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="65536"):
        write_shard(tmp_path / "x.bin", np.array([65536]))
    write_shard(tmp_path / "y.bin", np.array([3, 300]))
    stream = ShardStream([tmp_path / "y.bin"], vocab_size=257)
    assert stream.read(0, 1).tolist() == [3]
    with pytest.raises(ValueError, match="300"):
        stream.read(0, 2)


def test_stream_over_files_reads_as_one(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 1000, 1037)
    paths = write_shards(tmp_path, "train", np.array_split(tokens, 13), per_shard=100)
    assert [token_count(path) for path in paths] == [100] * 10 + [37]
    stream = ShardStream(paths, 1000)
    assert len(stream) == 1037
    for start, stop in [(0, 1037), (99, 101), (250, 250), (1000, 1037), (0, 100)]:
        assert stream.read(start, stop).tolist() == tokens[start:stop].tolist()
    assert stream.counts(1000).tolist() == np.bincount(tokens, minlength=1000).tolist()
    assert stream.counts(1000, 500).tolist() == np.bincount(tokens[:500], minlength=1000).tolist()


def folder_of(texts: list[str], folder: Path) -> Path:
    runs = [np.array([256, *text.encode()]) for text in texts]
    write_shards(folder, "train", runs, per_shard=64)
    write_shards(folder, "val", runs[:2], per_shard=64)
    return folder


def test_corpus_gives_tokens_as_they_are_and_their_text(tmp_path):
    texts = ["the cat sees the sea", "caf\u00e9", "a dog hears rain and more rain and yet more rain", "x"] * 3
    corpus = TokenShardCorpus(folder_of(texts, tmp_path / "shards"))
    data = TextDataModule(corpus, BytesThatBegin(), length=16)
    assert data.train_blocks()[0].tolist() == [256, *b"the cat sees th"]
    assert list(corpus.documents("train")) == texts and list(corpus.documents("valid")) == texts[:2]
    total = sum(len(text.encode()) for text in texts[:2])
    assert data.bytes_per_token() == pytest.approx(total / (total + 2))
    assert int(data.token_counts()[256]) <= len(texts)
    assert ByteTable.of(data.tokenizer).boundary[256]


def test_a_judge_has_held_out_rows_of_shards_that_nobody_opened(tmp_path):
    """Whoever scores samples has a model's tokenizer and the corpus, and no token cache."""
    texts = ["the cat sees the sea", "a dog hears rain and more rain"] * 8
    folder = folder_of(texts, tmp_path / "shards")
    tokenizer = BytesThatBegin().build(())
    real = held_out_blocks(TokenShardCorpus(folder), tokenizer, 8, 4)
    stream = [token for text in texts[:2] for token in (256, *text.encode())]
    assert real.blocks == [stream[start : start + 8] for start in range(0, len(stream) - 7, 8)] and len(real.chosen) == 4
    data = TextDataModule(TokenShardCorpus(folder), BytesThatBegin(), length=8)
    assert real.blocks[1] == data.valid_blocks()[1].tolist()


def test_what_a_folder_lacks_is_said(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        TokenShardCorpus(tmp_path / "none").source_fingerprint()
    with pytest.raises(ValueError, match="holds no"):
        TokenShardCorpus(tmp_path).source_fingerprint()
    corpus = TokenShardCorpus(folder_of(["ab" * 20], tmp_path))
    with pytest.raises(ValueError, match="tokenizer.path"):
        next(corpus.documents("train"))
