"""The restricted reader: everything torch.save writes comes back, and nothing in a file runs."""

import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from hostile import HARMLESS, HOSTILE, pickled, text
from omegaconf import OmegaConf
from published.published_layouts import FakeTokenizer, flm_v1, ran

from flm.checkpoints import restricted
from flm.checkpoints.load import load_algorithm
from flm.checkpoints.restricted import Inert


def test_tensors_and_plain_containers_come_back(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    content = {
        "views": [base, base[1:, ::2], base.T, base[2, 3]],
        "kinds": [base.to(kind) for kind in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool)],
        "complex": torch.complex(base, base),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base),
        "ordered": OrderedDict([("b", 1), ("a", (1, 2.5, None, True, "x"))]),
        3: [1 << 200, -1, [], {}, (), {("a", "b"): 0}],
        "size": base.shape,
    }
    torch.save(content, tmp_path / "x.ckpt")
    found = restricted.read(tmp_path / "x.ckpt")
    for key in ("views", "kinds"):
        for given, back in zip(content[key], found[key], strict=True):
            assert torch.equal(given, back) and given.dtype == back.dtype and given.stride() == back.stride()
    assert found["views"][0].untyped_storage().data_ptr() == found["views"][2].untyped_storage().data_ptr()
    for key in ("complex", "empty", "parameter"):
        assert torch.equal(content[key], found[key])
    assert list(found["ordered"].items()) == list(content["ordered"].items())
    assert found[3] == content[3] and found["size"] == (4, 6)
    assert list(found) == list(content)


def test_it_agrees_with_torch_on_a_whole_checkpoint(tmp_path):
    torch.save(flm_v1()[0], tmp_path / "x.ckpt")
    found = restricted.read(tmp_path / "x.ckpt")
    assert ran == []
    expected = torch.load(tmp_path / "x.ckpt", weights_only=False)
    assert ran == ["FakeTokenizer.__setstate__"]  # what an unsafe load does run
    ran.clear()
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    for key, tensor in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][key], tensor)
    for ours, theirs in zip(found["ema"]["shadow_params"], expected["ema"]["shadow_params"], strict=True):
        assert torch.equal(ours, theirs)
    for key in ("epoch", "global_step", "loops", "lr_schedulers", "ema_decay_list", "pytorch-lightning_version"):
        assert found[key] == expected[key]


def test_other_objects_leave_their_attributes_and_nothing_else(tmp_path):
    content = {"tokenizer": FakeTokenizer(), "config": OmegaConf.create({"a": 1}), "class": FakeTokenizer, "set": {1}}
    torch.save(content, tmp_path / "x.ckpt")
    found = restricted.read(tmp_path / "x.ckpt")
    assert type(found["tokenizer"]) is Inert and found["tokenizer"].state["vocabulary"]["cat"] == 6
    assert found["tokenizer"].state["ranks"] == {("a", "b"): 0}
    assert type(found["config"]) is type(found["set"]) is Inert and not callable(found["class"])
    assert ran == []


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_plain_values(tmp_path, protocol):
    value = {"a": [1, -2, 1 << 70, 2.5, None, True, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], "b": {}, "c": "x" * 300}
    pickled(tmp_path / "x.ckpt", pickle.dumps([value, value], protocol))
    found = restricted.read(tmp_path / "x.ckpt")
    assert found == [value, value] and found[0] is found[1]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_leaves_no_trace_and_gives_one_line(tmp_path, name):
    flag, path = tmp_path / "ran", tmp_path / "x.ckpt"
    HOSTILE[name](path, flag)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError) as caught:
        load_algorithm(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and len(line) < 500
    assert not flag.exists() and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", HARMLESS)
def test_a_hostile_tokenizer_beside_good_weights_stays_inert(tmp_path, name):
    flag, path = tmp_path / "ran", tmp_path / "x.ckpt"
    HARMLESS[name](path, flag)
    algorithm, _ = load_algorithm(path)
    assert torch.equal(algorithm.backbone.input_table, flm_v1()[2]["vocab_embed.embedding"])
    assert not flag.exists()
    # and the payload is live: an unsafe load does run it
    torch.load(path, weights_only=False)
    assert flag.exists()


@pytest.mark.parametrize("name", ["reduce", "build", "new", "global", "stack global", "inst", "obj", "getattr"])
def test_the_payloads_are_live(tmp_path, name):
    flag, path = tmp_path / "ran", tmp_path / "x.ckpt"
    HOSTILE[name](path, flag)
    torch.load(path, weights_only=False)
    assert flag.exists()


@pytest.mark.parametrize(
    "name", ["oversized storage", "oversized tensor", "expanded tensor", "tensor beyond its storage", "short storage"]
)
def test_sizes_are_refused_for_what_they_are(tmp_path, name):
    HOSTILE[name](tmp_path / "x.ckpt", tmp_path / "ran")
    with pytest.raises(ValueError, match="declares|of [0-9]+ elements in a storage of"):
        restricted.read(tmp_path / "x.ckpt")


def test_our_own_checkpoints_hold_no_objects(tmp_path):
    content = {"flm": {"format_version": 1}, "state_dict": {}, "callbacks": FakeTokenizer()}
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="x.ckpt: refused, it holds Python objects .*published_layouts.FakeTokenizer"):
        load_algorithm(tmp_path / "x.ckpt")
    assert ran == []


def test_a_pickle_of_too_many_operations(tmp_path, monkeypatch):
    monkeypatch.setattr(restricted, "MAX_OPERATIONS", 1000)
    pickled(tmp_path / "x.ckpt", b"\x80\x02]" + b"N0" * 600 + b".")
    with pytest.raises(ValueError, match="x.ckpt: refused, .* more than 1000 operations"):
        restricted.read(tmp_path / "x.ckpt")


def test_a_pickle_too_large(tmp_path, monkeypatch):
    from flm.checkpoints import torch_archive

    monkeypatch.setattr(torch_archive, "MAX_PICKLE_BYTES", 1 << 20)
    pickled(tmp_path / "x.ckpt", b"\x80\x02" + text("x" * (1 << 20)) + b".")
    with pytest.raises(ValueError, match="x.ckpt: refused: its pickle is larger than 1 MiB"):
        restricted.read(tmp_path / "x.ckpt")


def test_a_storage_that_lies_anywhere_in_the_file(tmp_path):
    """Other programs pack the same records without torch's alignment."""
    path, tight = tmp_path / "x.ckpt", tmp_path / "tight.ckpt"
    value = torch.arange(5, dtype=torch.float64)
    torch.save({"a": torch.ones(3, dtype=torch.uint8), "b": value}, path)
    for pad in range(4):
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(tight, "w") as target:
            target.writestr("x/" + "p" * pad, "")
            for info in source.infolist():
                target.writestr(info.filename, source.read(info))
        assert torch.equal(restricted.read(tight)["b"], value)


def test_a_flipped_bit_and_a_cut(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"a": torch.randn(10_000), "x": FakeTokenizer()}, path)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="x.ckpt: damaged: the checksum"):
        restricted.read(path)
    for cut in (0, 100, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="x.ckpt: .*(cut short|not a readable)"):
            restricted.read(path)
    with pytest.raises(ValueError, match="none.ckpt: no such"):
        restricted.read(tmp_path / "none.ckpt")


def test_a_written_file_does_not_change_under_its_readers(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"a": torch.ones(100), "x": FakeTokenizer()}, path)
    before = path.read_bytes()
    restricted.read(path)["a"].zero_()  # mapped copy-on-write
    assert path.read_bytes() == before
