"""A SentencePiece model read without its library gives the same ids, bytes and text."""

import gzip
import json
import os
from pathlib import Path

import pytest
import torch

from flm.data.byte_table import ByteTable
from flm.data.shards import encode_documents
from flm.data.tokenizers import ByteTokenizer, Tokenizer
from flm.texts.sentencepiece import SentencePieceModel, SentencePieceTokenizer

# a folder with fineweb_1024_bpe.model and fineweb_docs.jsonl.gz of the parameter-golf track
FIXTURES = Path(os.environ.get("FLM_GOLF_FIXTURES", "fixtures-not-here"))
TEXTS = [
    "the cat sees the sea 1234",
    "  two  spaces ",
    "a <s> b </s>",
    "caf\u00e9 \u2603 \ufb01sh",
    "x\ty\nz",
    "",
]


@pytest.fixture(scope="module")
def model() -> bytes:
    pytest.importorskip("sentencepiece")
    words = ["cat", "dog", "bird", "sees", "hears", "likes", "rain", "sea", "the", "one", "river", "under"]
    documents = [" ".join(words[(i * j + j) % len(words)] for j in range(1, 30)) + f" {i}." for i in range(60)]
    return SentencePieceTokenizer(vocab_size=330).train(iter(documents))


def total_bytes(tokenizer: Tokenizer, ids: list[int]) -> int:
    ids = torch.tensor([tokenizer.bos_id, *ids])
    return int(ByteTable.of(tokenizer).bytes(ids[1:], ids[:-1]).sum())


def test_same_ids_and_bytes_as_the_library(model):
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = Tokenizer.from_dict(SentencePieceModel.parse(model).tokenizer("x").to_dict())
    assert tokenizer.vocab_size == reference.get_piece_size()
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    for text in TEXTS:
        ids = reference.encode(text)
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == reference.decode(ids)
        assert total_bytes(tokenizer, ids) == len(reference.decode(ids).encode()), text


def test_documents_begin_with_bos_and_end_with_nothing(model):
    tokenizer = SentencePieceModel.parse(model).tokenizer("x")
    texts = ["the cat", "a dog", "rain"]
    run = [i for ids in encode_documents(texts, tokenizer) for i in ids]
    assert run == [i for text in texts for i in (1, *tokenizer.encode(text))]


def test_a_document_cut_for_length_begins_once(model, monkeypatch):
    tokenizer = SentencePieceModel.parse(model).tokenizer("x")
    monkeypatch.setattr("flm.data.shards._BATCH_CHARACTERS", 40)
    run = [i for ids in encode_documents(["the cat sees rain " * 12, "dog"], tokenizer) for i in ids]
    assert run.count(1) == 2 and run[0] == 1
    assert run == [
        i for text in ("the cat sees rain " * 12, "dog") for i in (1, *tokenizer.encode(text))
    ]  # and no space is lost


def test_table_of_pieces(model):
    table = ByteTable.of(SentencePieceModel.parse(model).tokenizer("x"))
    assert table.boundary.nonzero().flatten().tolist() == [0, 1, 2]  # a space behind an unknown token is text
    assert table.base_bytes[4:260].eq(1).all() and not table.leading_space[:260].any()
    space = table.leading_space & (table.base_bytes == 0)
    assert space.sum() == 1  # the piece of a lone space
    lone = space.nonzero()[:, 0]
    assert table.bytes(lone, torch.tensor([1])) == 0 and table.bytes(lone, torch.tensor([10])) == 1  # after BOS, after text


def test_byte_level_pieces_count_their_bytes():
    tokenizer = ByteTokenizer().build(lambda: iter(()))
    assert total_bytes(tokenizer, [*tokenizer.encode("caf\u00e9 \u2603"), tokenizer.eos_id]) == 9


def test_a_space_that_would_count_three_bytes_is_refused(model):
    parsed = SentencePieceModel.parse(model)
    parsed.pieces = [piece for piece in parsed.pieces if piece.text != "\u2581"]
    with pytest.raises(ValueError, match="lone space"):
        ByteTable.of(parsed.tokenizer("x"))


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2 + 1], lambda raw: b"not a model", lambda raw: b""])
def test_damaged_files_are_refused(model, tmp_path, damage):
    path = tmp_path / "x.model"
    path.write_bytes(damage(model))
    with pytest.raises(ValueError, match="tokenizer.path"):
        SentencePieceTokenizer(path).build(lambda: iter(()))
    with pytest.raises(ValueError, match="tokenizer.path"):
        SentencePieceTokenizer(tmp_path / "none.model").build(lambda: iter(()))


@pytest.mark.slow
@pytest.mark.skipif(not FIXTURES.is_dir(), reason="FLM_GOLF_FIXTURES names no folder")
def test_golden_numbers_of_the_track():
    tokenizer = SentencePieceTokenizer(FIXTURES / "fineweb_1024_bpe.model").build(lambda: iter(()))
    with gzip.open(FIXTURES / "fineweb_docs.jsonl.gz", "rt", encoding="utf-8") as file:
        documents = [json.loads(line)["text"] for line in file]
    stream = torch.tensor([i for ids in encode_documents(documents, tokenizer) for i in ids])
    table = ByteTable.of(tokenizer)
    previous = torch.cat((torch.tensor([1]), stream[:-1]))
    assert (len(documents), len(stream), int(table.bytes(stream, previous).sum())) == (200, 628_457, 1_489_418)
    assert table.base_bytes[939] == 0 and table.leading_space[939] and table.boundary.sum() == 3
    for text, pieces, size in [("Hello world", 5, 11), ("a b", 2, 3), ("caf\u00e9 \u2603", 9, 9), ("  x", 1, 1)]:
        ids = tokenizer.encode(text)
        assert (len(ids), total_bytes(tokenizer, ids)) == (pieces, size)
