"""Records that name files by their ids: the rows are those of the files' texts."""

import gzip
import json

import pytest
import torch
from running import config_of
from tiny_qwen3 import tiny_qwen3, with_tokenizer

from flm.data.loaders import Share
from flm.data.tokenizers import ByteTokenizer
from flm.qwen.examples import Unfit
from flm.qwen.files_by_id import FilesById, Folder, SoftwareHeritage, unpacked
from flm.qwen.mixture import MixtureCorpus

TEXTS = {f"{index:040x}": f"def f{index}(x):\n    return x + {index}  # \u00e9\n" for index in range(30)}


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contents")
    for index, (name, text) in enumerate(TEXTS.items()):
        data = text.encode("latin-1" if index % 2 else "utf-8")
        (folder / f"{name}.gz").write_bytes(gzip.compress(data)) if index % 3 else (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    (folder / "ids").mkdir()
    (folder / "texts").mkdir()
    records = [{"blob_id": name, "src_encoding": "ISO-8859-1" if k % 2 else "UTF-8"} for k, name in enumerate(TEXTS)]
    (folder / "ids" / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "texts" / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS.values()))
    return folder


def rows(sources, name, reader, count=12):
    tokenizer = ByteTokenizer().build(None)
    corpus = MixtureCorpus({name: {"weight": 1}}, reader, path=sources, valid_fraction=0.2, readers=1)
    loader = corpus.stream_loader(tokenizer, 48, 3, Share(0, 3, 4), None, {"num_workers": 0})
    found = []
    for batch in loader:
        found.append(batch.tokens)
        if 4 * len(found) >= count:
            return torch.cat(found)


def test_rows_are_those_of_the_texts(contents, sources):
    """The order depends on the source's number of records and seed, not on its name."""
    assert torch.equal(rows(sources, "ids", FilesById(Folder(contents))), rows(sources, "texts", None))


@pytest.mark.parametrize(
    "record,problem",
    [
        ({"blob_id": "../x", "src_encoding": None}, "is not a file's id"),
        ({"blob_id": "absent", "src_encoding": None}, "the file absent cannot be had"),
        ({"blob_id": 7, "src_encoding": None}, "holds 7, not the id"),
        ({"blob_id": next(iter(TEXTS)), "src_encoding": "klingon"}, "unknown encoding, 'klingon'"),
    ],
)
def test_what_does_not_fit_is_one_line(record, problem, contents):
    with pytest.raises(Unfit, match=problem):
        FilesById(Folder(contents)).text(record)


def test_unpacking_is_bounded():
    bomb = gzip.compress(bytes(10**7))
    with pytest.raises(Unfit, match="more than 1000 bytes"):
        unpacked(bomb, "id", 1000)
    with pytest.raises(Unfit, match="ends in the middle"):
        unpacked(gzip.compress(b"abc")[:-9], "id", 1000)
    with pytest.raises(Unfit, match="not packed by gzip"):
        unpacked(b"plain", "id", 1000)


def test_without_credentials_or_client_there_is_one_line(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(ValueError, match="The Stack v2 holds file ids"):
        FilesById(SoftwareHeritage()).text({"blob_id": "a", "src_encoding": None})


def test_the_config_reads_a_folder_of_files(contents, sources, tmp_path):
    from hydra.utils import instantiate

    qwen = with_tokenizer(tiny_qwen3(tmp_path / "qwen", vocab_size=264, eos_token_id=257))
    config = config_of(
        tmp_path,
        "experiment=qwen3_pretrain",
        "data=qwen3_pretrain_stack_v2",
        f"model.pretrained_path={qwen}",
        f"tokenizer.name_or_path={qwen}",
        f"data.reader.contents={{_target_: flm.qwen.files_by_id.Folder, path: '{contents}'}}",
    )
    corpus = instantiate(config.data)
    kinds = {source.name: type(source.reader).__name__ for source in corpus.sources}
    assert {name for name, kind in kinds.items() if kind == "FilesById"} == {"python", "javascript", "java", "cpp"}
