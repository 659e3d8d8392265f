"""Files that people hand in cost no more than they say: one line, bounded memory and time, in a process with limits."""

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, resource, sys
from pathlib import Path
from flm.atomic import write_text
from flm.data.cache import TokenCache
from flm.data.corpora.pairs import PairCorpus
from flm.data.corpora.text import TextCorpus
from flm.data.pretrained_tokenizer import HuggingFaceTokenizer
from flm.texts.sentencepiece import SentencePieceTokenizer
from flm.data.tokenizers import Tokenizer
from flm.golf.shard_files import ShardStream

def read(kind, path):
    if kind == "text":
        list(TextCorpus(path, valid_path=path).documents("train"))
    elif kind == "pairs":
        list(PairCorpus(path, valid_path=path).pairs("train"))
    elif kind == "shards":
        stream = ShardStream([Path(path)], 256)
        stream.read(0, len(stream))
    elif kind == "cache":
        TokenCache(Path(path))
    elif kind == "sentencepiece":
        SentencePieceTokenizer(path).build(None).encode("a b")
    elif kind == "folder":
        HuggingFaceTokenizer(path).build(None).encode("a b")

# what importing takes, and a gigabyte
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for kind, path in json.load(sys.stdin):
    try:
        read(kind, path)
        print(json.dumps("read"), flush=True)
    except ValueError as error:
        print(json.dumps(str(error)), flush=True)
"""


def outcomes(cases):
    """What a process with limits says of each (kind, path): an error's text, or "read"."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([(kind, str(path)) for kind, path in cases]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=1200,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('"')]
    assert done.returncode == 0 and len(found) == len(cases), (found[-1:], done.returncode, done.stderr[-2000:])
    return found


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def bomb(size, before=b"", after=b""):
    """A gzip file of `size` more bytes than a few packed ones."""
    block = gzip.compress(b"a" * (1 << 24), 1)
    return gzip.compress(before) + block * (size >> 24) + gzip.compress(after)


def test_text_and_pairs(tmp_path):
    good = gzip.compress(b'{"text": "a"}\n' * 1000)
    many = gzip.compress(b'{"text": "b"}\n')
    cases = {
        ("text", write(tmp_path / "a.txt.gz", bomb(1 << 31))): "expands to more than 256 MB",
        ("text", write(tmp_path / "a.jsonl.gz", bomb(1 << 31, b'{"text": "', b'"}'))): "line 1: longer than 256 MB",
        ("pairs", write(tmp_path / "b.jsonl.gz", bomb(1 << 31, b'{"prompt": "', b'"}'))): "line 1: longer than 64 MB",
        ("text", write(tmp_path / "c.jsonl", b"[" * 200_000)): "line 1: JSON nested too deep",
        ("text", write(tmp_path / "d.jsonl", b'{"text": ' + b"[" * 200_000)): "line 1: JSON nested too deep",
        ("pairs", write(tmp_path / "e.jsonl", b'{"a":' * 200_000)): "line 1: JSON nested too deep",
        ("text", write(tmp_path / "f.jsonl", b'{"text": ' + b"9" * 100_000 + b"}")): "line 1",
        ("text", write(tmp_path / "g.jsonl.gz", good[:-9])): "no readable gzip file",
        ("text", write(tmp_path / "h.jsonl.gz", good + b"junk")): "no readable gzip file",
        ("text", write(tmp_path / "i.jsonl.gz", many[:-4] + b"\xff\xff\xff\x7f")): "no readable gzip file",
        ("text", write(tmp_path / "j.txt.gz", b"not packed")): "no readable gzip file",
    }
    for (_, path), found, message in zip(cases, outcomes(cases), cases.values(), strict=True):
        assert message in found and str(path) in found and "\n" not in found, (path.name, found)


def test_tables(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a" * 100] * 3000}), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    with pyarrow.OSFile(str(tmp_path / "whole.arrow"), "wb") as sink:
        table = pyarrow.table({"text": ["a" * 100] * 3000})
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    stream = (tmp_path / "whole.arrow").read_bytes()
    rng = random.Random(0)
    cases = [("text", tmp_path / "whole.parquet"), ("text", tmp_path / "whole.arrow")]
    for index in range(12):
        for name, raw in (("parquet", whole), ("arrow", stream)):
            damaged = bytearray(raw)
            for _ in range(4):
                damaged[rng.randrange(len(raw))] = rng.randrange(256)
            cases.append(("text", write(tmp_path / f"{index}.{name}", bytes(damaged))))
            cases.append(("text", write(tmp_path / f"cut{index}.{name}", raw[: rng.randrange(len(raw))])))
    # a gigabyte and a half of one text over and over, in a few kilobytes
    dictionary = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 30_000, pyarrow.int32()), ["x" * 50_000])
    pyarrow.parquet.write_table(pyarrow.table({"text": dictionary}), tmp_path / "repeated.parquet", compression="zstd")
    cases.append(("text", tmp_path / "repeated.parquet"))
    found = outcomes(cases)
    assert found[:2] == ["read", "read"]
    for (_, path), said in zip(cases[2:-1], found[2:-1], strict=True):
        assert said == "read" or (str(path) in said and "\n" not in said), (path.name, said)
    assert sum(said != "read" for said in found) > 20


def test_shards_and_caches(tmp_path):
    header = [20240520, 1, 3]

    def shard(*numbers):
        return b"".join(n.to_bytes(4, "little", signed=True) for n in numbers).ljust(1024, b"\0")

    cases = {
        ("shards", write(tmp_path / "a.bin", shard(*header) + bytes(4))): "is damaged",
        ("shards", write(tmp_path / "b.bin", shard(20240520, 1, 2**31 - 1))): "is damaged",
        ("shards", write(tmp_path / "c.bin", shard(20240520, 1, -1))): "is damaged",
        ("shards", write(tmp_path / "d.bin", b"\0" * 10)): "no token shard",
        ("shards", write(tmp_path / "e.bin", shard(*header) + b"\xff" * 6)): "is not below the tokenizer's 256",
        ("cache", write(tmp_path / "nested" / "manifest.json", b"[" * 300_000).parent): "is damaged",
        (
            "cache",
            write(tmp_path / "odd" / "manifest.json", b'{"format": 2, "vocab_size": 9}').parent,
        ): "damaged",
    }
    for found, message in zip(outcomes(cases), cases.values(), strict=True):
        assert message in found and "\n" not in found


def test_sentencepiece_files(tmp_path):
    pytest.importorskip("sentencepiece")
    from flm.texts.sentencepiece import SentencePieceTokenizer

    lines = [" ".join(f"{w}{i % 7}" for w in ("cat", "dog", "sees", "rain", "the")) for i in range(200)]
    whole = SentencePieceTokenizer(vocab_size=310).train(iter(lines))
    rng = random.Random(1)
    cases = [("sentencepiece", write(tmp_path / "whole.model", whole))]
    for index in range(40):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.randrange(len(whole) if index % 2 else 6000)] = rng.randrange(256)
        cases.append(("sentencepiece", write(tmp_path / f"{index}.model", bytes(damaged))))
        cases.append(("sentencepiece", write(tmp_path / f"cut{index}.model", whole[: rng.randrange(len(whole))])))
    with (tmp_path / "huge.model").open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    cases.append(("sentencepiece", tmp_path / "huge.model"))
    long = b"\n" + bytes([0x87, 0x80, 0x40]) + b"\n" + bytes([0x80, 0x80, 0x40]) + b"a" * (1 << 20) + b"\x18\x01"
    cases.append(("sentencepiece", write(tmp_path / "long.model", long + b"\x12\x02\x18\x02")))
    found = outcomes(cases)
    assert found[0] == "read"
    for (_, path), said in zip(cases[1:], found[1:], strict=True):
        assert said == "read" or (str(path) in said and "\n" not in said), (path.name, said)
    assert "larger than" in found[-2] and "tokenizer.path" in found[-1]


def test_tokenizer_folders(tmp_path):
    pytest.importorskip("transformers")
    nested = b'{"model": ' + b"[" * 200_000
    cases = {
        ("folder", write(tmp_path / "a" / "tokenizer.json", nested).parent): "tokenizer.name_or_path",
        ("folder", write(tmp_path / "b" / "tokenizer.json", b"{}").parent): "tokenizer.name_or_path",
        ("folder", write(tmp_path / "c" / "vocab.txt", b"\xff\xfe").parent): "vocab.txt",
        ("folder", write(tmp_path / "d" / "vocab.txt", b"a\nb\n").parent): "vocab.txt has no [UNK]",
        ("folder", write(tmp_path / "e" / "tokenizer_config.json", nested).parent): "tokenizer.name_or_path",
    }
    write(tmp_path / "f" / "vocab.json", nested)
    cases["folder", write(tmp_path / "f" / "merges.txt", b"").parent] = "vocab.json and merges.txt"
    for (_, path), found, message in zip(cases, outcomes(cases), cases.values(), strict=True):
        assert message in found and str(path) in found and "\n" not in found, (path.name, found)
