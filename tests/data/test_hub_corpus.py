"""Published data sets, from local stand-ins of the same form and from a hub on this machine."""

import gzip
import io
import json
import os
import socket

import datasets
import datasets.load
import huggingface_hub.constants
import hydra
import pyarrow
import pyarrow.parquet
import pytest
import torch
from fake_hub import FakeHub
from hydra import compose, initialize_config_dir

import flm.data.corpora.source_files as source_files
from flm.data.cache import open_cache
from flm.data.corpora.hub import HubCorpus
from flm.data.corpora.source_files import Digests, files_of_split, read_documents
from flm.data.module import TextDataModule
from flm.data.pretrained_tokenizer import HuggingFaceTokenizer
from flm.data.tokenizers import ByteTokenizer
from flm.schema import check
from flm.tasks.command_line import CONFIGS

TEXTS = [f"document {i} ." if i % 7 else "" for i in range(40)]
ABSENT = "http://127.0.0.1:9"  # nobody listens on the discard port


def parquet(texts, key="text", rows=3):
    stream = io.BytesIO()
    table = pyarrow.table({key: texts, "other": list(range(len(texts)))})
    pyarrow.parquet.write_table(table, stream, row_group_size=rows)
    return stream.getvalue()


def jsonl(texts, key="text"):
    return "".join(json.dumps({"id": i, key: text}) + "\n" for i, text in enumerate(texts)).encode()


def lines(texts):
    return "".join(f"{text}\n" for text in texts).encode()


def put(folder, files):
    for name, raw in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    return folder


def kept(texts):
    return [text for text in texts if text]


def point_to(url, monkeypatch):
    template = "{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{template}")


@pytest.fixture
def offline(monkeypatch):
    point_to(ABSENT, monkeypatch)


@pytest.fixture
def hub(monkeypatch):
    parts = {f"set/train-{i:05d}.parquet": parquet(TEXTS[10 * i : 10 * i + 10]) for i in range(4)}
    files = {**parts, "set/test-00000.parquet": parquet(["held out"]), "set/set.py": b"raise SystemExit", "README.md": b"-"}
    server = FakeHub("some/set", "main", "a" * 40, files | {"other/train-00000.parquet": parquet(["of another subset"])})
    point_to(server.url, monkeypatch)
    yield server
    server.close()


def config(name, tmp_path, *overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", [f"run_dir={tmp_path}", f"data={name}", f"data.cache_dir={tmp_path}", *overrides]).data


HUB_CONFIGS = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml") if "\n  - hub\n" in path.read_text())


@pytest.mark.parametrize("name", HUB_CONFIGS)
@pytest.mark.parametrize("kind", ["parquet", "jsonl.gz", "txt"])
def test_each_config_reads_files_of_its_form(name, kind, tmp_path, offline):
    node = config(
        name,
        tmp_path,
        *(["data.valid_documents=7"] if "valid_documents: 1" in (CONFIGS / f"data/{name}.yaml").read_text() else []),
    )
    write = {"parquet": parquet, "jsonl.gz": lambda *a: gzip.compress(jsonl(*a)), "txt": lambda texts, key: lines(texts)}[kind]
    # parquet as the hub has it, in the subset's folder; the others as somebody may have put them there
    inside = f"{node.subset}/" if node.subset and kind == "parquet" else ""
    splits = {split: [f"{split} {i} , word" for i in range(20)] for split in (node.train, node.valid) if split}
    files = {
        f"{inside}{split}-{i}.{kind}": write(texts[10 * i : 10 * i + 10], node.text_key)
        for split, texts in splits.items()
        for i in (0, 1)
    }
    put(tmp_path / name, files)
    corpus = hydra.utils.instantiate(node)
    normalise = corpus.normaliser or (lambda text: text)
    train, valid = splits.get(node.train, []), splits.get(node.valid)
    if valid is None:
        train, valid = train[:-7], train[-7:]
    assert list(corpus.documents("valid")) == [normalise(text) for text in valid]
    if node.train is None:
        with pytest.raises(ValueError, match=f"data={name} has no training text"):
            corpus.raw_documents("train")
    else:
        assert list(corpus.documents("train")) == [normalise(text) for text in train]


def test_the_sets_of_the_literature_are_there():
    wanted = "lm1b openwebtext wikitext2 wikitext103 ptb lambada ag_news pubmed arxiv text8 tinystories fineweb_edu"
    assert sorted(wanted.split()) == HUB_CONFIGS


def test_published_splits_and_wrapping(tmp_path):
    lm1b, owt = config("lm1b", tmp_path), config("openwebtext", tmp_path)
    assert (lm1b.train, lm1b.valid, lm1b.wrap) == ("train", "test", "bos_eos")
    assert (owt.train, owt.valid, owt.valid_documents, owt.normaliser, owt.wrap) == ("train", None, 100_000, None, "bos_eos")


@pytest.mark.parametrize(
    ("kind", "held_out"), [("parquet", 1), ("parquet", 4), ("parquet", 5), ("parquet", 39), ("jsonl.gz", 17)]
)
def test_the_last_documents_are_held_out(kind, held_out, tmp_path):
    write = parquet if kind == "parquet" else lambda texts: gzip.compress(jsonl(texts))
    put(tmp_path, {f"train-{i}.{kind}": write(TEXTS[5 * i : 5 * i + 5]) for i in range(8)})
    corpus = HubCorpus("own", "some/set", valid=None, valid_documents=held_out, path=tmp_path)
    assert list(corpus.documents("train")) == kept(TEXTS[:-held_out])  # empty documents count, as rows do
    assert list(corpus.documents("valid")) == kept(TEXTS[-held_out:])
    with pytest.raises(ValueError, match=r"data\.valid_documents=40 leaves none of the 40 documents"):
        HubCorpus("own", "some/set", valid=None, valid_documents=40, path=tmp_path).raw_documents("train")


def test_held_out_files_alone_are_read_for_the_held_out_split(tmp_path, monkeypatch):
    put(tmp_path, {f"train-{i}.parquet": parquet(TEXTS[5 * i : 5 * i + 5]) for i in range(8)})
    read = []
    inner = source_files._documents
    monkeypatch.setattr(source_files, "_documents", lambda file, key: read.append(file.name) or inner(file, key))
    list(HubCorpus("own", "some/set", valid=None, valid_documents=7, path=tmp_path).raw_documents("valid"))
    assert read == ["train-6.parquet", "train-7.parquet"]


def test_all_kinds_of_file_give_the_same_documents(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    raw = jsonl(TEXTS)
    variants = {"a.parquet": parquet(TEXTS), "b.jsonl": raw, "c.jsonl.gz": gzip.compress(raw), "d.txt": lines(TEXTS)}
    variants |= {"e.txt.gz": gzip.compress(lines(TEXTS)), "f.jsonl.zst": zstandard.compress(raw), "g [1]*.json": raw}
    put(tmp_path, variants)
    for name in variants:
        assert list(read_documents([tmp_path / name], "text")) == kept(TEXTS), name


def test_which_file_belongs_to_which_split():
    names = [
        "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000.parquet", "b/valid/x.jsonl",
        "train_set/dev.txt", "lambada_test_en.jsonl.gz", "wiki.train.txt", "partial-train/0000.parquet", "train.py",
        ".cache/train.parquet", "README.md", "retrain.parquet", "rest.parquet",
    ]  # fmt: skip
    assert files_of_split(names, "train", False) == [names[0], names[1], "wiki.train.txt"]
    assert files_of_split(names, "test", False) == ["data/test-00000.parquet", "lambada_test_en.jsonl.gz"]
    assert files_of_split(names, "validation", False) == ["b/valid/x.jsonl", "train_set/dev.txt"]
    assert files_of_split(names, "extra", False) == []
    assert files_of_split(["b.parquet", "a.parquet", "x.py"], "train", True) == ["a.parquet", "b.parquet"]
    assert files_of_split(["a.parquet", "train.parquet"], "train", True) == ["train.parquet"]


def test_without_network_one_line_says_what_to_put_where(tmp_path, offline):
    corpus = HubCorpus("own", "some/set", valid="test", subset="sub", revision="v1", cache_dir=tmp_path)
    with pytest.raises(
        ValueError, match="data=own: .*train and test of the data set some/set, folder sub, revision v1"
    ) as caught:
        open_cache(corpus, ByteTokenizer().build(lambda: iter(())), tmp_path)
    assert "\n" not in str(caught.value) and f"into {tmp_path / 'own'} (or a folder that data.path names)" in str(caught.value)
    assert all(kind in str(caught.value) for kind in (".parquet", ".jsonl", ".txt", ".gz", ".zst"))
    with pytest.raises(ValueError, match=r"tokenizer\.name_or_path=some-name .*local folder.*data\.cache_dir"):
        HuggingFaceTokenizer("some-name").build(lambda: iter(()), tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train.parquet": parquet(["a"])}, "no file of the split test in .*: .parquet"),
        ({"train.parquet": parquet(["a"]), "test.csv": b"text"}, "no file of the split test"),
        ({"train.parquet": parquet(["a"]), "train.txt": b"a", "test.txt": b"b"}, "the split train as parquet and as text"),
        ({"train.parquet": parquet(["a"], "body"), "test.txt": b"b"}, r"train\.parquet: .*text"),
        ({"train.jsonl": b'{"body": "a"}\n', "test.txt": b"b"}, r'train\.jsonl: no "text", only body: set data\.text_key'),
        ({"train.jsonl": b'{"text": 3}\n', "test.txt": b"b"}, r'train\.jsonl: "text" holds int'),
        ({"train.jsonl": b'{"text": "a"\n{', "test.txt": b"b"}, r"train\.jsonl: "),
        ({"train.parquet": parquet(["a"])[:-9], "test.txt": b"b"}, r"train\.parquet: "),
        ({"train.txt.gz": b"plain", "test.txt": b"b"}, r"train\.txt\.gz: "),
    ],
)
def test_errors_name_the_file(files, message, tmp_path):
    corpus = HubCorpus("own", "some/set", valid="test", path=put(tmp_path / "own", files))
    with pytest.raises(ValueError, match=message) as caught:
        corpus.fingerprint(), list(corpus.documents("train")), list(corpus.documents("valid"))
    assert "\n" not in str(caught.value)


def test_wrong_keys(tmp_path):
    for options in ({"valid": None}, {"valid_documents": 5}):
        with pytest.raises(ValueError, match=r"data\.valid"):
            HubCorpus("own", "some/set", **options)
    with pytest.raises(ValueError, match=r"data\.valid_documents must be"):
        check(HubCorpus, {"name": "own", "hub": "some/set", "valid": None, "valid_documents": 0}, "data")
    with pytest.raises(ValueError, match=r"data\.path=.*no such folder"):
        HubCorpus("own", "some/set", path=tmp_path / "nowhere").fingerprint()
    with pytest.raises(ValueError, match=r"data\.cache_dir"):
        HubCorpus("own", "some/set").fingerprint()


def test_local_files_are_known_by_content_and_read_once_for_it(tmp_path, monkeypatch):
    files = {"train.parquet": parquet(["a"]), "valid.txt": b"b\n"}
    prints = []
    for place in ("one", "two"):
        put(tmp_path / place / "own", files)
        prints.append(HubCorpus("own", "some/set", cache_dir=tmp_path / place).fingerprint())
    assert prints[0] == prints[1]
    hashed = []
    inner = source_files._sha256
    monkeypatch.setattr(source_files, "_sha256", lambda file: hashed.append(file.name) or inner(file))
    same = HubCorpus("own", "some/set", cache_dir=tmp_path / "one")
    assert same.fingerprint() == prints[0] and hashed == []
    changed = tmp_path / "one" / "own" / "valid.txt"
    before = changed.stat()
    changed.write_bytes(b"c\n")
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nothing had happened
    assert same.fingerprint() != prints[0] and hashed == ["valid.txt"]
    (tmp_path / "one" / "digests.json").write_text("{")  # only a memory
    assert Digests(tmp_path / "one" / "digests.json")([changed]) == [inner(changed)]


def test_download_then_no_network(hub, tmp_path, monkeypatch):
    corpus = HubCorpus("own", "some/set", valid="test", subset="set", cache_dir=tmp_path)
    fingerprint = corpus.fingerprint()
    assert hub.asked == []  # tokens made before are found without the files
    cache = open_cache(corpus, ByteTokenizer().build(lambda: iter(())), tmp_path)
    assert sorted(hub.asked) == [f"set/test-{0:05d}.parquet", *(f"set/train-{i:05d}.parquet" for i in range(4))]
    assert cache.manifest["provenance"] == {"hub": "some/set", "revision": "main", "commit": "a" * 40}
    point_to(ABSENT, monkeypatch)
    again = HubCorpus("own", "some/set", valid="test", subset="set", cache_dir=tmp_path)
    assert list(again.documents("train")) == kept(TEXTS) and list(again.documents("valid")) == ["held out"]
    assert again.fingerprint() == fingerprint
    with pytest.raises(ValueError, match="holds some/set, revision main"):
        list(HubCorpus("own", "some/set", valid="test", subset="set", revision="v2", cache_dir=tmp_path).documents("train"))
    (tmp_path / "own" / "set" / "train-00002.parquet").unlink()
    with pytest.raises(ValueError, match="train-00002.parquet is gone"):
        list(again.documents("train"))


def test_an_interrupted_download_goes_on_at_its_commit(hub, tmp_path):
    corpus = HubCorpus("own", "some/set", valid="test", subset="set", cache_dir=tmp_path)
    hub.broken.add("set/train-00002.parquet")
    with pytest.raises(ValueError, match="cannot be had"):
        corpus.raw_documents("train")
    hub.broken.clear()
    hub.asked.clear()
    hub.branch = "moved on"  # the branch is another commit now, or gone
    assert list(corpus.raw_documents("train")) == kept(TEXTS)
    assert hub.asked == ["set/train-00002.parquet", "set/train-00003.parquet"]


@pytest.fixture
def bert(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "we", "were", "late", ".", ",", "so", "it", "rained", "'", "s"]
    put(tmp_path / "bert-base-uncased", {"vocab.txt": "\n".join(words).encode()})
    return words


def test_lm1b_blocks_as_published(bert, tmp_path):
    sentences = ["We were late .", "It rained , so we were late .", "It 's late ."] * 9
    put(tmp_path / "lm1b", {"train.txt": lines(sentences), "test.txt": lines(sentences[:6])})
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        whole = compose("config", [f"run_dir={tmp_path}", "data=lm1b", f"data.cache_dir={tmp_path}", "tokenizer=bert"])
    data = TextDataModule(hydra.utils.instantiate(whole.data), hydra.utils.instantiate(whole.tokenizer), length=12)
    assert list(data.valid_documents())[:3] == ["We were late.", "It rained, so we were late.", "It's late."]
    stream = []
    for sentence in sentences:
        stream += [bert.index(word) for word in sentence.lower().replace("'s", "' s").split()] + [bert.index("[CLS]")]
    blocks = data.train_blocks()
    assert len(blocks) == len(stream) // 10
    for i in range(len(blocks)):
        assert blocks[i].tolist() == [2, *stream[10 * i : 10 * i + 10], 2]
    assert bert.index("[SEP]") not in torch.cat([blocks[i] for i in range(len(blocks))]).tolist()


def test_gpt2_ends_with_a_pad_id(tmp_path):
    vocabulary = {**{chr(97 + i): i for i in range(26)}, "\u0120": 26, "<|endoftext|>": 27}
    put(tmp_path / "gpt2", {"vocab.json": json.dumps(vocabulary).encode(), "merges.txt": b"#version: 0.2\n"})
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        node = compose("config", [f"run_dir={tmp_path}", "tokenizer=gpt2"]).tokenizer
    tokenizer = hydra.utils.instantiate(node).build(lambda: iter(()), tmp_path)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (29, 27, 27, 28)
    assert tokenizer.token(28) == "[PAD]" and tokenizer.encode("b a") == [1, 26, 0]


def test_batches_of_a_hub_corpus_do_not_depend_on_workers(tmp_path):
    put(tmp_path / "own", {"train.parquet": parquet(TEXTS * 5), "valid.txt": lines(TEXTS)})

    def batches(workers):
        corpus = HubCorpus("own", "some/set", wrap="bos_eos", cache_dir=tmp_path)
        data = TextDataModule(corpus, ByteTokenizer(), length=16, seed=3, global_batch_size=8, num_workers=workers)
        return [batch.tokens for batch in data.train_loader(0, 30)]

    assert all(map(torch.equal, batches(0), batches(2)))


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_sources_are_read_in_a_stream(kind, tmp_path):
    texts = [f"{i} " * 200 for i in range(80_000)]
    put(tmp_path, {f"train.{kind}": parquet(texts, rows=1000) if kind == "parquet" else jsonl(texts)})
    held = []
    before = pyarrow.total_allocated_bytes()
    for number, _ in enumerate(read_documents([tmp_path / f"train.{kind}"], "text")):
        if number % 500 == 0:
            held.append(pyarrow.total_allocated_bytes() - before)
    assert number == len(texts) - 1 and max(held) < sum(map(len, texts)) / 2


def test_reading_local_files_asks_no_server(tmp_path, monkeypatch):
    put(tmp_path, {"train.parquet": parquet(["a"])})

    asked = []

    def refuse(*arguments, **_):
        asked.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.load, "get_session", refuse)
    assert list(read_documents([tmp_path / "train.parquet"], "text")) == ["a"] and asked == []
