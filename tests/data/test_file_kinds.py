"""data=text reads what people have, and says what reads the rest."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from flm.data.corpora.pairs import PairCorpus
from flm.data.corpora.source_files import records
from flm.data.corpora.text import TextCorpus
from flm.golf.shard_corpus import TokenShardCorpus

TEXTS = [f"text {i} caf\u00e9" for i in range(2500)]


def documents(path, **options):
    corpus = TextCorpus(path, **options)
    return [text for split in ("train", "valid") for text in corpus.documents(split)]


def test_parquet_and_saved_folders_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = pyarrow.table({"id": list(range(2500)), "text": [*TEXTS[:-1], None]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    assert sorted(documents(tmp_path / "a.parquet")) == sorted(TEXTS[:-1])
    whole = datasets.Dataset.from_dict({"text": TEXTS})
    whole.save_to_disk(tmp_path / "saved", num_shards=3)
    (tmp_path / "saved" / "cache-1.arrow").write_bytes(b"of a map that was once made")
    assert sorted(documents(tmp_path / "saved")) == sorted(TEXTS)
    datasets.DatasetDict({"train": whole.select(range(2000)), "test": whole.select(range(2000, 2500))}).save_to_disk(
        tmp_path / "both"
    )
    with pytest.raises(ValueError, match=r"the splits test, train: name two of them, as in data\.path=\S*both/train data\."):
        documents(tmp_path / "both")
    corpus = TextCorpus(tmp_path / "both" / "train", tmp_path / "both" / "test")
    assert list(corpus.documents("valid")) == TEXTS[2000:] and list(corpus.documents("train")) == TEXTS[:2000]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_message_names_the_right_kind(tmp_path):
    pairs = write(tmp_path / "pairs" / "a.jsonl", json.dumps({"prompt": "p", "response": "r"}))
    pyarrow.parquet.write_table(pyarrow.table({"content": ["a"]}), tmp_path / "other.parquet")
    cases = [
        (TextCorpus, pairs, r"line 1: prompts with responses are read by data=pairs"),
        (TextCorpus, tmp_path / "other.parquet", r'no column "text", only content: data=hub .*data\.text_key'),
        (TextCorpus, write(tmp_path / "golf" / "x_train_0.bin", b"").parent, "holds .bin, read by data=golf_shards"),
        (TextCorpus, write(tmp_path / "table" / "a.csv", "a,b").parent, "holds .csv, read by none: convert it"),
        (TextCorpus, write(tmp_path / "model" / "last.ckpt", b"").parent, r"a checkpoint, for eval\.checkpoint_path"),
        (TextCorpus, write(tmp_path / "web" / "a.jsonl.zst", b"").parent, "holds .zst, read by data=hub"),
        (TextCorpus, write(tmp_path / "web2" / "a.json", b"").parent, "holds .json, read by data=hub"),
        (PairCorpus, tmp_path / "other.parquet", "data=hub_pairs for prompts with responses"),
        (PairCorpus, write(tmp_path / "plain" / "a.txt", "a").parent, "holds .txt, read by data=text"),
        (TokenShardCorpus, tmp_path / "plain", "holds .txt, read by data=text"),
    ]
    for kind, path, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            corpus = kind(path)
            corpus.fingerprint()
            list(corpus.raw_documents("train"))
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    write(tmp_path / "cache" / "manifest.json", "{}")
    write(tmp_path / "cache" / "train-counts.bin", b"")
    with pytest.raises(ValueError, match="a cache of tokens made here: name the text"):
        documents(tmp_path / "cache")


def test_a_file_without_records_holds_none(tmp_path):
    """One empty shard of many had ended a run with the word StopIteration."""
    pytest.importorskip("datasets")
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "none.parquet")
    empty = {"a.jsonl": "", "b.jsonl": "\n\n", "c.json": "[]", "d.txt": "", "e.jsonl.gz": gzip.compress(b"")}
    for path in [tmp_path / "none.parquet", *(write(tmp_path / name, content) for name, content in empty.items())]:
        assert list(records(path, ["text"])) == [], path.name
    for name in ("f.jsonl.gz", "g.jsonl.zst"):  # what is left of a download
        with pytest.raises(ValueError, match=f"{name}: no bytes at all, which no compressed file has"):
            list(records(write(tmp_path / name, b""), ["text"]))
