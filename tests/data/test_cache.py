import json
import multiprocessing
import os
import pickle
import shutil

import numpy as np
import pytest

import flm.data.cache as cache_module
from flm.data.cache import TokenStream, document_groups, encode_documents, open_cache
from flm.data.corpora.text import TextCorpus
from flm.data.tokenizers import BPETokenizer, ByteTokenizer, CharacterTokenizer, Tokenizer

DOCUMENTS = [f"document {i} " + "caf\u00e9 and tea " * (i % 7) for i in range(60)]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in DOCUMENTS))
    return TextCorpus(path, valid_fraction=0.2)


@pytest.fixture
def tokenizer():
    return ByteTokenizer().build(lambda: iter(()))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_stream_is_the_documents_with_an_end_after_each(corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD_CHARACTERS", 500)
    monkeypatch.setattr(document_groups, "__defaults__", (500,))
    monkeypatch.setattr(cache_module, "_MAX_OPEN", 2)
    cache = open_cache(corpus, tokenizer, tmp_path / "cache")
    for split in ("train", "valid"):
        documents = list(corpus.documents(split))
        expected = [i for text in documents for i in [*text.encode(), 256]]
        stream = cache.tokens(split)
        assert stream.read(0, len(stream)).tolist() == expected
        for start in range(0, len(stream) - 700, 97):  # across shards, and back
            assert stream.read(start, start + 700).tolist() == expected[start : start + 700]
        counts = cache.manifest["splits"][split]
        assert counts["documents"] == len(documents) and counts["tokens"] == len(expected)
        assert counts["bytes"] == sum(len(text.encode()) for text in documents)
        assert cache.bytes_per_token(split) == counts["bytes"] / len(expected)
        assert np.array_equal(stream.counts(257, 100), np.bincount(expected[:100], minlength=257))
        with pytest.raises(IndexError):
            stream.read(0, len(stream) + 1)
    assert len(cache.manifest["splits"]["train"]["shards"]) > 3
    assert cache.manifest["dtype"] == "<u2"


def test_large_vocabulary_takes_four_bytes(corpus, tmp_path):
    import tokenizers
    from tokenizers import models

    size = 65537
    words = {"<unk>": 0, **{f"w{i}": i for i in range(1, size)}}
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    cache = open_cache(corpus, Tokenizer(backend, "large", "test", size - 1, size - 1), tmp_path / "cache")
    stream = cache.tokens("valid")
    assert cache.manifest["dtype"] == "<u4" and stream.read(0, len(stream)).tolist() == [0, size - 1] * 12


def test_built_again_it_has_the_same_bytes_and_is_not_built_twice(corpus, tokenizer, tmp_path, monkeypatch):
    first = open_cache(corpus, tokenizer, tmp_path / "one").folder
    second = open_cache(corpus, tokenizer, tmp_path / "two").folder
    assert contents(first) == contents(second) and first.name == second.name
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [first.name, f"{first.name}.lock"]
    monkeypatch.setattr(cache_module, "_build", lambda *_: pytest.fail("built again"))
    assert open_cache(corpus, tokenizer, tmp_path / "one").folder == first


def test_other_corpus_or_tokenizer_is_another_cache(corpus, tokenizer, tmp_path):
    characters = CharacterTokenizer().build(lambda: corpus.documents("train"))
    other = TextCorpus(corpus.path, valid_fraction=0.2, split_seed=1)
    folders = {open_cache(c, t, tmp_path / "cache").folder for c in (corpus, other) for t in (tokenizer, characters)}
    assert len(folders) == 4


def test_damage_is_noticed(corpus, tokenizer, tmp_path):
    whole = open_cache(corpus, tokenizer, tmp_path / "cache").folder
    keep = tmp_path / "keep"
    shutil.copytree(whole, keep)

    def flip(path):
        raw = bytearray(path.read_bytes())
        raw[7] ^= 1
        path.write_bytes(raw)

    def newer(path):
        path.write_text(path.read_text().replace('"format": 1', '"format": 2'))

    cases = [
        ("train-00000.bin", flip),
        ("valid-00000.bin", lambda path: path.write_bytes(path.read_bytes()[:-2])),
        ("valid-00000.bin", lambda path: path.unlink()),
        ("manifest.json", lambda path: path.write_text(path.read_text()[:-20])),
        ("manifest.json", lambda path: path.write_text("[]")),
        ("manifest.json", lambda path: path.unlink()),
        ("manifest.json", newer),
    ]
    for name, damage in cases:
        shutil.rmtree(whole)
        shutil.copytree(keep, whole)
        open_cache(corpus, tokenizer, tmp_path / "cache")
        damage(whole / name)
        with pytest.raises(ValueError, match=f"{name} is damaged .*delete the folder {whole}") as caught:
            open_cache(corpus, tokenizer, tmp_path / "cache")
        assert "\n" not in str(caught.value)


def test_large_caches_are_checked_by_size_alone(corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_VERIFY_BYTES", 10)
    path = open_cache(corpus, tokenizer, tmp_path / "cache").folder / "train-00000.bin"
    raw = path.read_bytes()
    path.write_bytes(b"\0" * len(raw))
    open_cache(corpus, tokenizer, tmp_path / "cache")
    path.write_bytes(raw + raw[:2])
    with pytest.raises(ValueError, match="train-00000.bin is damaged"):
        open_cache(corpus, tokenizer, tmp_path / "cache")


def test_failed_build_leaves_nothing_behind(corpus, tokenizer, tmp_path):
    class Nothing:
        def __call__(self, text):
            return ""

        def fingerprint(self):
            return {}

    corpus.normaliser = Nothing()
    with pytest.raises(ValueError, match="train split .* is empty"):
        open_cache(corpus, tokenizer, tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def _open(path, root, start, results):
    start.wait()
    corpus = TextCorpus(path, valid_fraction=0.2)
    tokenizer = BPETokenizer(300).build(lambda: corpus.documents("train"), root, corpus.fingerprint())
    cache = open_cache(corpus, tokenizer, root)
    results.put((cache.folder.name, cache.tokens("train").read(0, 50).tolist()))


def test_processes_building_at_once_end_with_one_whole_cache(corpus, tmp_path, monkeypatch):
    build = cache_module._build

    def noted(*arguments):
        (tmp_path / f"built by {os.getpid()}").touch()
        build(*arguments)

    monkeypatch.setattr(cache_module, "_build", noted)  # the forked processes inherit it
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    root = tmp_path / "cache"
    processes = [context.Process(target=_open, args=(corpus.path, root, start, results)) for _ in range(3)]
    for process in processes:
        process.start()
    start.set()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert answers[0] == answers[1] == answers[2] and len(list(tmp_path.glob("built by *"))) == 1
    assert [path.name for path in root.iterdir() if path.is_dir()] == [answers[0][0]]
    assert len(list(root.glob("tokenizer-*.json"))) == 1 and len(list(root.iterdir())) == 3


def test_without_locks_the_first_to_finish_wins(corpus, tokenizer, tmp_path, monkeypatch):
    class NoLock:
        def __init__(self, path):
            pass

        acquire = release = lambda self, timeout=None: None

    build = cache_module._build

    def overtaken(corpus, tokenizer, fingerprint, folder):
        build(corpus, tokenizer, fingerprint, folder)
        before = contents(folder)
        build(corpus, tokenizer, fingerprint, folder)
        assert contents(folder) == before

    monkeypatch.setattr(cache_module, "FileLock", NoLock)
    monkeypatch.setattr(cache_module, "_build", overtaken)
    open_cache(corpus, tokenizer, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_long_documents_give_the_ids_of_the_whole(monkeypatch):
    monkeypatch.setattr(cache_module, "_BATCH_CHARACTERS", 64)
    texts = ["one two\n\nthree  four, caf\u00e9 (and) " * 30, "short", "x" * 500, "a    b      c " * 80]
    tokenizer = BPETokenizer(300).build(lambda: iter(texts))
    ids = [i for run in encode_documents(texts, tokenizer) for i in run]
    assert tokenizer.decode(ids) == "".join(f"{text}<|end|>" for text in texts)
    texts.pop(2)  # solid text has no place where a cut changes nothing
    ids = [i for run in encode_documents(texts, tokenizer) for i in run]
    assert ids == [i for text in texts for i in [*tokenizer.encode(text), tokenizer.eos_id]]


def test_groups_hold_whole_documents_in_order():
    groups = list(document_groups(["aaa", "bb", "c", "dddd", "e"], characters=4))
    assert groups == [["aaa", "bb"], ["c", "dddd"], ["e"]]


def test_pickled_stream_holds_no_tokens(tmp_path):
    tokens = np.arange(50_000, dtype="<u2")
    tokens.tofile(tmp_path / "a.bin")
    stream = TokenStream([tmp_path / "a.bin"], [50_000], np.dtype("<u2"))
    stream.read(0, 10)
    raw = pickle.dumps(stream)
    assert len(raw) < 2000 and pickle.loads(raw).read(100, 103).tolist() == [100, 101, 102]
