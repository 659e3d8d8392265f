"""Files that describe far more than they hold cost one line, a second and bounded memory; sizes in order are not refused."""

import copy
import hashlib
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from export.test_export import checkpoint, edited
from torch import nn

import flm
from flm.checkpoints import files
from flm.checkpoints.description import KEY, Description
from flm.checkpoints.load import load_algorithm
from flm.checkpoints.room import Room
from flm.export.hf_folder import write_folder
from flm.export.model_card import model_card
from flm.golf import packed
from flm.golf.packing import pack

KINDS = ("flm", "ar", "flm_distill")
HUGE = {
    "blocks": ("model", "num_blocks", 10**9),
    "blocks past the tensors": ("model", "num_blocks", 5000),
    "width": ("model", "hidden_size", 65_536),
    "width beyond addresses": ("model", "hidden_size", 2**40),
    "width of a multiplier": ("model", "mlp_ratio", 10**9),
    "condition": ("model", "cond_dim", 10**9),
    "neighbours": ("model", "neighbours", 10**9),
    "grid": ("model", "grid", [10**9, 10**9]),
    "vocabulary": ("vocab_size", 10**9),
}
# Address space over what Python with this project takes; seconds are for each file.
CHILD = """
import json, resource, sys, time
import torch, flm.golf.packed, zstandard
from flm.export.hf_folder import write_folder
from flm.checkpoints.load import load_algorithm
load_algorithm(sys.argv[1])  # what is imported on the way
size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (240, 240))
found = {}
for name in json.load(sys.stdin):
    start = time.process_time()
    try:
        load_algorithm(name)
        message = "no error"
    except ValueError as error:
        message = str(error)
    except BaseException as error:
        message = f"TRACEBACK {type(error).__name__}: {error}"
    found[name] = (message, time.process_time() - start)
print(json.dumps(found))
"""


def bomb(codec, promised, filling):
    """An artifact with a right digest whose content is `filling` zeros."""
    if codec == packed.ZLIB:
        compressed = zlib.compress(bytes(filling), 1)
    else:
        compressed = pytest.importorskip("zstandard").ZstdCompressor(level=1).compress(bytes(filling))
    return packed._HEADER.pack(packed.MAGIC, codec, promised, hashlib.sha256(compressed).digest()) + compressed


BOMBS = {
    "zlib promises.flmpack": (packed.ZLIB, (1 << 32) - 1, 2 << 20, "refused before reading"),
    "zstd promises.flmpack": (packed.ZSTD, (1 << 32) - 1, 2 << 20, "refused before reading"),
    "zlib holds more.flmpack": (packed.ZLIB, 1000, 1100 << 20, "more bytes in place of 1,000"),
    "zstd holds more.flmpack": (packed.ZSTD, 1000, 1100 << 20, "more bytes in place of 1,000"),
    "zlib holds less.flmpack": (packed.ZLIB, 5000, 1000, "1,000 bytes in place of 5,000"),
    "zstd holds less.flmpack": (packed.ZSTD, 5000, 1000, "1,000 bytes in place of 5,000"),
}


def changed(config, key, value):
    found = copy.deepcopy(config)
    found["model"][key] = value
    return found


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """By file: what loading it says, and the seconds it takes."""
    root = tmp_path_factory.mktemp("room")
    names = []
    for kind in KINDS:
        path = checkpoint(root / f"{kind}.ckpt", kind)
        algorithm, file = load_algorithm(path)
        write_folder(root / kind, algorithm, file, model_card(kind, algorithm, file))
        content = files.load(path)
        for what, (*where, value) in HUGE.items():
            description = content[KEY]
            if where[0] == "model":
                description = description | {"config": changed(description["config"], where[1], value)}
            else:
                description = description | {where[0]: value}
            names.append(f"{kind}, {what}.ckpt")
            torch.save(content | {KEY: description}, root / names[-1])
            folder = root / f"{kind}, {what}"
            folder.mkdir()
            for part in (root / kind).iterdir():
                (folder / part.name).symlink_to(part)
            (folder / "config.json").unlink()
            (folder / "config.json").write_bytes((root / kind / "config.json").read_bytes())
            key = "__".join(("flm", "config", *where) if where[0] == "model" else ("flm", *where))
            edited(folder, **{key: value})
            names.append(folder.name)
    for name, (codec, promised, filling, _) in BOMBS.items():
        (root / name).write_bytes(bomb(codec, promised, filling))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "ar.ckpt"],
        input=json.dumps(names + list(BOMBS)),
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(Path(flm.__file__).parents[1])},
    )
    assert not done.returncode, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", HUGE)
def test_a_description_of_far_more_than_the_file_holds_is_one_line(said, what):
    for kind in KINDS:
        for name in (f"{kind}, {what}.ckpt", f"{kind}, {what}"):
            message, seconds = said[name]
            assert message.startswith(name) and "\n" not in message and len(message) < 600, (name, message)
            assert re.search(
                "far larger than|do not fit|must be|no model can be built|is for models that see both ways", message
            ), (name, message)
            assert seconds < 2, (name, seconds)


@pytest.mark.parametrize("name", BOMBS)
def test_a_compressed_file_costs_what_its_header_promises(said, name):
    message, seconds = said[name]
    assert message.startswith(name) and BOMBS[name][-1] in message and "\n" not in message
    assert seconds < 2


class Stack(nn.Module):
    """A class that has nothing to do with ours: `depth` layers, and a table that no file holds."""

    def __init__(self, depth: int, width: int, table: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.register_buffer("table", torch.zeros(table), persistent=False)


def test_room_is_of_what_the_file_holds_whatever_the_class():
    state = Stack(10, 8, 3).state_dict()
    room = Room.of(state)
    assert room == Room(20, 10 * (64 + 8))
    assert sum(p.numel() for p in room.checked(Stack)(10, 8, 1000).parameters()) == room.elements
    for depth, width, table in ((10**9, 8, 3), (10, 65_536, 3), (10, 8, 10**9)):
        with pytest.raises(ValueError, match="far larger than the 20 tensors with 720 elements"):
            room.checked(Stack)(depth, width, table)
    Stack(1000, 2, 3)  # nothing is counted afterwards
    # a million names for one tensor are no room
    one = torch.zeros(100)
    assert Room.of({str(index): one for index in range(1000)}).elements == 100


class Unbuildable(nn.Module):
    """Looks at its weights while it is built, which no module without memory can."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.total = self.weight.sum().item()


def test_a_class_that_cannot_be_built_without_memory_is_built():
    assert Room(1, 3).checked(Unbuildable)().total == 3


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_changed_byte_in_a_folder_is_noticed(tmp_path, name):
    algorithm, file = load_algorithm(checkpoint(tmp_path / "x.ckpt", "ar"))
    folder = tmp_path / "model"
    write_folder(folder, algorithm, file, "")
    load_algorithm(folder)
    path = folder / name
    if name == "model.safetensors":
        content = bytearray(path.read_bytes())
        content[-7] ^= 1  # of a weight: the file stays readable
        path.write_bytes(content)
        safetensors.torch.load_file(path)
    else:
        path.write_text(path.read_text() + " ")
    with pytest.raises(ValueError, match=f"{name}: changed since it was exported") as caught:
        load_algorithm(folder)
    assert "\n" not in str(caught.value)
    content = json.loads((folder / "config.json").read_text())
    del content["flm"]["sha256"]  # as of folders before there were digests
    (folder / "config.json").write_text(json.dumps(content))
    load_algorithm(folder)
    for wrong in ([], {"../x": "0"}, None):
        edited(folder, flm__sha256=wrong)
        with pytest.raises(ValueError, match="config.json: damaged: flm.sha256"):
            load_algorithm(folder)


def test_every_changed_byte_of_an_artifact_is_noticed(tmp_path):
    algorithm, file = load_algorithm(checkpoint(tmp_path / "x.ckpt", "ar"))
    description = Description(file.config, file.tokenizer, algorithm.vocab_size, algorithm.length, file.step)
    content = pack(algorithm, description, None).content
    for index in [*range(packed._HEADER.size), *range(packed._HEADER.size, len(content), 101)]:
        path = tmp_path / "x.flmpack"
        path.write_bytes(content[:index] + bytes([content[index] ^ 4]) + content[index + 1 :])
        with pytest.raises(ValueError, match="x.flmpack: "):
            packed.read(path)
