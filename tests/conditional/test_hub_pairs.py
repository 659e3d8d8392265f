"""Published sets of pairs, from local stand-ins of the same form and from a hub on this machine."""

import gzip
import io
import json

import huggingface_hub.constants
import hydra
import pyarrow
import pyarrow.parquet
import pytest
from fake_hub import FakeHub
from tasks.running import config_of

from flm.conditional.hub_pairs import HubPairCorpus
from flm.data.module import TextDataModule
from flm.data.tokenizers import ByteTokenizer

ABSENT = "http://127.0.0.1:9"  # nobody listens on the discard port
END = 256


def point_to(url, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = "{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{template}")


def parquet(rows):
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream, row_group_size=3)
    return stream.getvalue()


def jsonl_gz(rows):
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())


def put(folder, files):
    for name, raw in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)


def instructions(count, mark="train"):
    return [{"instruction": f"{mark} {i}?", "response": f"{i * i}\nso", "instruction_source": "made up"} for i in range(count)]


def translations(count, mark="train"):
    return [{"translation": {"de": f"{mark} {i} ist da .", "en": f"{mark} {i} is here ."}} for i in range(count)]


def built(name, tmp_path, *overrides):
    return hydra.utils.instantiate(config_of(tmp_path, f"data={name}", f"data.cache_dir={tmp_path}", *overrides).data)


@pytest.mark.parametrize(("kind", "write"), [("parquet", parquet), ("jsonl.gz", jsonl_gz)])
def test_lamini_holds_out_pairs_by_chance(kind, write, tmp_path, monkeypatch):
    point_to(ABSENT, monkeypatch)
    rows = instructions(40)
    unusable = [{"instruction": "", "response": "b", "instruction_source": None}, {**rows[0], "response": None}]
    put(tmp_path / "lamini", {f"data/train-0.{kind}": write(rows[:20]), f"data/train-1.{kind}": write(rows[20:] + unusable)})
    corpus = built("lamini", tmp_path, "data.valid_fraction=0.1")
    train, valid = list(corpus.pairs("train")), list(corpus.pairs("valid"))
    whole = [(row["instruction"] + "\n", row["response"]) for row in rows]
    assert len(valid) == 4 and [pair for pair in whole if pair in train] == train and sorted(train + valid) == sorted(whole)
    module = TextDataModule(corpus, ByteTokenizer(), length=32, global_batch_size=8)
    row = module.valid_blocks().row(0)
    prompt, response = (text.encode() for text in valid[0])
    size = len(prompt) + len(response)
    assert bytes(row.tokens[:size].tolist()) == prompt + response and (row.tokens[size:] == END).all()
    assert row.weight.tolist() == [0.0] * len(prompt) + [1.0] * (32 - len(prompt))


def test_wmt14_has_splits_of_its_own(tmp_path, monkeypatch):
    files = {f"de-en/train-{i:05d}-of-00002.parquet": parquet(translations(6, f"train {i}")) for i in range(2)}
    files |= {f"de-en/{split}-00000-of-00001.parquet": parquet(translations(3, split)) for split in ("validation", "test")}
    other = {"cs-en/train-00000-of-00001.parquet": parquet([{"translation": {"cs": "a", "en": "b"}}])}
    server = FakeHub("wmt/wmt14", "main", "a" * 40, files | other)
    point_to(server.url, monkeypatch)
    try:
        corpus = built("wmt14_de_en", tmp_path)
        fingerprint = corpus.fingerprint()
        assert server.asked == []
        assert list(corpus.pairs("train"))[6] == ("train 1 0 ist da .\n", "train 1 0 is here .")
        assert [response for _, response in corpus.pairs("valid")] == [f"validation {i} is here ." for i in range(3)]
        assert sorted(server.asked) == sorted(name for name in files if "test" not in name)
    finally:
        server.close()
    point_to(ABSENT, monkeypatch)
    again = built("wmt14_de_en", tmp_path)
    assert len(list(again.pairs("train"))) == 12 and again.fingerprint() == fingerprint
    assert again.provenance() == {"hub": "wmt/wmt14", "revision": "main", "commit": "a" * 40}
    with pytest.raises(ValueError, match=r"data=wmt14_de_en: .*train and test of the data set wmt/wmt14, folder de-en"):
        list(built("wmt14_de_en", tmp_path, "data.valid=test").pairs("valid"))
    own = tmp_path / "own"
    put(own, {"train.jsonl.gz": jsonl_gz(translations(4)), "test.jsonl.gz": jsonl_gz(translations(2, "test"))})
    published = built("wmt14_de_en", tmp_path, "data.valid=test", f"data.path={own}")
    assert [response for _, response in published.pairs("valid")] == ["test 0 is here .", "test 1 is here ."]


def test_fingerprints_tell_apart_what_is_other(tmp_path):
    put(tmp_path / "a", {"train.jsonl.gz": jsonl_gz(instructions(3)), "valid.jsonl.gz": jsonl_gz(instructions(2, "valid"))})
    common = {"path": tmp_path / "a", "prompt_key": "instruction"}
    variants = [{}, {"valid": "validation"}, {"separator": " "}, {"response_key": "instruction_source"}, {"split_seed": 1}]
    prints = [HubPairCorpus("own", "some/set", **common, **options).fingerprint() for options in [*variants, {}]]
    assert prints[0] == prints[-1] and all(prints.count(one) == 1 for one in prints[1:-1])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "response": "b"}, r'train\.jsonl\.gz: no "prompt", .*set data\.prompt_key and data\.response_key'),
        ({"prompt": "a", "response": 3}, r'row 1: "response" holds int, not text'),
        ({"prompt": "a\x1e", "response": "b"}, r"row 1: .*U\+001E"),
    ],
)
def test_errors_name_file_and_row(row, message, tmp_path):
    put(tmp_path, {"train.jsonl.gz": jsonl_gz([row])})
    with pytest.raises(ValueError, match=message) as caught:
        list(HubPairCorpus("own", "some/set", path=tmp_path).pairs("train"))
    assert "\n" not in str(caught.value)


def test_nested_keys_that_lead_nowhere(tmp_path):
    put(tmp_path, {"train.jsonl.gz": jsonl_gz(translations(1))})
    corpus = HubPairCorpus("own", "some/set", prompt_key="translation.fr", response_key="translation.en", path=tmp_path)
    with pytest.raises(ValueError, match=r'row 1: nothing under "translation\.fr"'):
        list(corpus.pairs("train"))
