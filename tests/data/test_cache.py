import json
import pickle
import shutil

import numpy as np
import pytest

import flm.data.cache as cache_module
import flm.data.shards as shards
from flm.data.cache import TokenCache, open_cache
from flm.data.corpora.text import TextCorpus
from flm.data.shards import document_groups, encode_documents
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
    """But for what was found sound, which goes by the times of the files."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-sound.bin")}


def test_stream_is_the_documents_with_an_end_after_each(corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_CHARACTERS", 500)
    monkeypatch.setattr(cache_module, "_MAX_OPEN", 2)
    corpus.processes = 1
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
        for stop in (0, 100, len(expected) - 3, len(expected)):  # counted, and the stored total less the rest
            assert np.array_equal(stream.counts(257, stop), np.bincount(expected[:stop], minlength=257))
        assert stream.counts(300).tolist() == np.bincount(expected, minlength=300).tolist()
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
    assert cache.manifest["dtype"] == "<u4" and stream.read(0, len(stream)).tolist() == [0, size - 1] * len(
        list(corpus.documents("valid"))
    )


def test_built_again_it_has_the_same_bytes_and_is_not_built_twice(corpus, tokenizer, tmp_path, monkeypatch):
    first = open_cache(corpus, tokenizer, tmp_path / "one").folder
    second = open_cache(corpus, tokenizer, tmp_path / "two").folder
    assert contents(first) == contents(second) and first.name == second.name
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [first.name, f"{first.name}.lock"]
    monkeypatch.setattr(cache_module, "build", lambda *_: pytest.fail("built again"))
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
        path.write_text(path.read_text().replace('"format": 2', '"format": 3'))

    cases = [
        ("train-00000.bin", flip),
        ("valid-00000.bin", flip),
        ("train-counts.bin", flip),
        ("train-counts.bin", lambda path: path.unlink()),
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


def test_large_caches_are_verified_where_they_are_read(corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_VERIFY_BYTES", 10)
    monkeypatch.setattr(shards, "CHUNK_BYTES", 64)
    monkeypatch.setattr(cache_module, "CHUNK_BYTES", 64)
    path = open_cache(corpus, tokenizer, tmp_path / "cache").folder / "train-00000.bin"
    raw = path.read_bytes()
    chunks = len(raw) // 64
    assert chunks > 20 and len(raw) % 64
    for flipped in (0, 63, 64, 700, len(raw) - 1):
        path.write_bytes(raw[:flipped] + bytes([raw[flipped] ^ 4]) + raw[flipped + 1 :])
        stream = open_cache(corpus, tokenizer, tmp_path / "cache").tokens("train")
        for chunk in range(chunks + 1):
            span = (chunk * 32, min(len(stream), chunk * 32 + 32))
            if chunk == flipped // 64:
                with pytest.raises(ValueError, match=rf"train-00000.bin is damaged .*chunk {chunk} .*delete the folder"):
                    stream.read(span[0] + 1, span[0] + 2)  # another token of the chunk
            else:
                assert stream.read(*span).tolist() == np.frombuffer(raw, "<u2")[slice(*span)].tolist()
    path.write_bytes(raw + raw[:2])
    with pytest.raises(ValueError, match="train-00000.bin is damaged"):
        open_cache(corpus, tokenizer, tmp_path / "cache")


@pytest.fixture
def read_to_verify(monkeypatch):
    """Sizes of what was read to verify it."""
    read, crc32 = [], cache_module.zlib.crc32
    monkeypatch.setattr(cache_module.zlib, "crc32", lambda chunk: read.append(memoryview(chunk).nbytes) or crc32(chunk))
    return read


@pytest.mark.parametrize("is_large", [False, True])
def test_a_cache_is_verified_once_for_all_processes_and_runs(
    corpus, tokenizer, tmp_path, monkeypatch, read_to_verify, is_large
):
    monkeypatch.setattr(shards, "CHUNK_BYTES", 64)
    monkeypatch.setattr(cache_module, "CHUNK_BYTES", 64)
    if is_large:
        monkeypatch.setattr(cache_module, "_VERIFY_BYTES", 10)
    folder = open_cache(corpus, tokenizer, tmp_path / "cache").folder
    size = sum(path.stat().st_size for path in folder.glob("*-0*.bin"))
    for path in folder.glob("*-sound.bin"):
        path.unlink()
    read_to_verify.clear()

    def run():
        """Two workers of a run read everything, one behind the other; and what is pickled for a third."""
        streams = [TokenCache(folder).tokens(split) for split in ("train", "valid") for _ in range(2)]
        for stream in [*streams, pickle.loads(pickle.dumps(streams[0]))]:
            stream.read(0, len(stream))

    run()  # files that were written just now may change unnoticed: nothing is remembered
    assert sum(read_to_verify) >= 2 * size
    monkeypatch.setattr(shards, "_SETTLED_SECONDS", -3600.0)
    read_to_verify.clear()
    run()
    assert sum(read_to_verify) == size
    read_to_verify.clear()
    run()
    assert read_to_verify == []
    path = folder / "train-00000.bin"
    raw = path.read_bytes()
    path.write_bytes(raw[:100] + bytes([raw[100] ^ 1]) + raw[101:])
    with pytest.raises(ValueError, match="train-00000.bin is damaged .*chunk 1 "):
        run()
    path.write_bytes(raw)
    run()
    for memory in folder.glob("*-sound.bin"):  # in the way: every process looks for itself
        memory.unlink()
        memory.mkdir()
    read_to_verify.clear()
    run()
    assert sum(read_to_verify) >= 2 * size


def test_a_manifest_that_disagrees_with_its_shards_is_noticed(corpus, tokenizer, tmp_path):
    folder = open_cache(corpus, tokenizer, tmp_path / "cache").folder
    whole = json.loads((folder / "manifest.json").read_text())

    def edit(change, honest):
        content = json.loads(json.dumps(whole))
        change(content)
        content.pop("digest")
        if not honest:  # a file of before the digest, or an edit by who knows of it
            (folder / "manifest.json").write_text(json.dumps(content))
        else:
            (folder / "manifest.json").write_text(json.dumps(content | {"digest": whole["digest"]}))

    train = whole["splits"]["train"]
    lies = [
        lambda m: m["splits"]["train"].update(tokens=train["tokens"] + 1),
        lambda m: m["splits"]["train"].update(documents=train["documents"] + 1),
        lambda m: m["splits"]["train"].update(documents=-1),
        lambda m: m["splits"]["train"].update(bytes="many"),
        lambda m: m["splits"]["train"].update(shards=[]),
        lambda m: m["splits"]["train"]["counts"].update(m["splits"]["valid"]["counts"]),
        lambda m: m["splits"]["train"]["shards"][0].update(file="../x.bin"),
        lambda m: m["splits"]["train"]["counts"].update(file="/etc/passwd"),
        lambda m: m.update(vocab_size=3),
        lambda m: m.update(vocab_size=1 << 60),
        lambda m: m.update(dtype="O"),
        lambda m: m.update(dtype="<f8"),
    ]
    for honest in (False, True):
        for lie in lies:
            edit(lie, honest)
            with pytest.raises(ValueError, match="is damaged or incomplete .*: delete the folder") as caught:
                TokenCache(folder)
            assert "\n" not in str(caught.value)
    edit(lambda m: m["splits"]["train"].update(bytes=7), True)  # which nothing else could tell
    with pytest.raises(ValueError, match="changed after it was written"):
        TokenCache(folder)
    edit(lambda m: None, False)
    assert len(TokenCache(folder).tokens("train")) == train["tokens"]  # a cache of before the digest
    (folder / "manifest.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        TokenCache(folder)


def test_manifest_says_what_it_holds(corpus, tokenizer, tmp_path):
    corpus.provenance = lambda: {"commit": "abc"}
    manifest = open_cache(corpus, tokenizer, tmp_path / "cache").manifest
    assert manifest["source"] == corpus.fingerprint() and manifest["tokenizer"] == tokenizer.fingerprint()
    assert manifest["provenance"] == {"commit": "abc"} and manifest["wrapping"]["after_each_document"] == 256


def test_a_corpus_of_one_split(corpus, tokenizer, tmp_path):
    class Held(TextCorpus):
        splits = ("valid",)

    cache = open_cache(Held(corpus.path, valid_fraction=0.2), tokenizer, tmp_path / "cache")
    assert len(cache.tokens("valid")) > 100
    with pytest.raises(ValueError, match="no train split, only valid"):
        cache.tokens("train")


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


def test_long_documents_give_the_ids_of_the_whole(monkeypatch):
    monkeypatch.setattr(shards, "_BATCH_CHARACTERS", 64)
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


def test_pickled_stream_holds_no_tokens(corpus, tokenizer, tmp_path):
    stream = open_cache(corpus, tokenizer, tmp_path / "cache").tokens("train")
    expected = stream.read(0, len(stream))
    raw = pickle.dumps(stream)
    assert len(raw) < len(stream) // 2 and np.array_equal(pickle.loads(raw).read(0, len(stream)), expected)
