"""Checkpoints that try to run something, or to fill the machine. Each is written by `write(path, flag)`; `flag` is the file
that comes into being if code in it runs."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from published.published_layouts import flm_v1


class Reduce:
    """Calls a function when loaded."""

    def __init__(self, flag: Path):
        self.flag = flag

    def __reduce__(self):
        return os.system, (f"touch {self.flag}",)


class Build:
    """Runs its own __setstate__ when loaded."""

    def __init__(self, flag: Path):
        self.flag = flag

    def __setstate__(self, state):
        Path(state["flag"]).touch()


class New:
    """Runs its own __new__ when loaded."""

    def __new__(cls, flag: Path):
        Path(flag).touch()
        return super().__new__(cls)

    def __getnewargs__(self):
        return (self.flag,)


def new(flag: Path) -> New:
    made = New(flag)
    made.flag = flag
    flag.unlink()
    return made


def pickled(path: Path, data: bytes, storages: dict[str, bytes] | None = None, prefix: str = "archive") -> None:
    """A torch zip file around the bytes of a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{prefix}/data.pkl", data)
        archive.writestr(f"{prefix}/byteorder", "little")
        archive.writestr(f"{prefix}/version", "3\n")
        for key, content in (storages or {}).items():
            archive.writestr(f"{prefix}/data/{key}", content)


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def call(flag: Path, function: bytes = b"cposix\nsystem\n") -> bytes:
    return b"\x80\x02" + function + text(f"touch {flag}") + pickle.TUPLE1 + pickle.REDUCE


def in_state_dict(value: bytes) -> bytes:
    """{"state_dict": {"backbone.vocab_embed.embedding": value}}, so that the file looks like a published one."""
    return b"\x80\x02}" + text("state_dict") + b"}" + text("backbone.vocab_embed.embedding") + value + b"ss."


def tensor(
    path: Path, count: int, size: tuple, stride: tuple, offset: int = 0, key: object = "0", record: bytes = bytes(16),
    kind: type = torch.FloatStorage,
) -> None:  # fmt: skip
    """A published file whose one tensor declares what it likes of a record of 16 bytes."""

    class Mark:
        pass

    class Declared:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Mark(), offset, size, stride, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return ("storage", kind, key, "cpu", count) if isinstance(thing, Mark) else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"state_dict": {"backbone.vocab_embed.embedding": Declared()}})
    pickled(path, stream.getvalue(), {"0": record})


def published_with(thing: Callable[[Path], object], where: str) -> Callable[[Path, Path], None]:
    """A published checkpoint with the thing in place of the tokenizer, or among the weights."""

    def write(path: Path, flag: Path) -> None:
        content = flm_v1()[0]
        if where == "tokenizer":
            content["hyper_parameters"]["tokenizer"] = thing(flag)
        elif where == "average":
            content["ema_list"] = {"0.9999": {"shadow_params": thing(flag)}}
        else:
            content["state_dict"]["backbone.blocks.0.norm1.weight"] = thing(flag)
        torch.save(content, path)

    return write


def nested(path: Path, flag: Path) -> None:
    inner = path.with_suffix(".inner")
    torch.save(Reduce(flag), inner)
    pickled(path, inner.read_bytes())
    inner.unlink()


def only_nested(path: Path, flag: Path) -> None:
    inner = path.with_suffix(".inner")
    torch.save(Reduce(flag), inner)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inner, "inner.ckpt")
    inner.unlink()


def with_record(name: str) -> Callable[[Path, Path], None]:
    def write(path: Path, flag: Path) -> None:
        published_with(lambda flag: None, "tokenizer")(path, flag)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, "#!/bin/sh\n")

    return write


def compressed(path: Path, flag: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", in_state_dict(b"N"))
        archive.writestr("archive/data/0", bytes(1 << 22))


def legacy(path: Path, flag: Path) -> None:
    torch.save({"state_dict": {}, "x": Reduce(flag)}, path, _use_new_zipfile_serialization=False)


def raw(make: Callable[[Path], bytes]) -> Callable[[Path, Path], None]:
    return lambda path, flag: pickled(path, make(flag), {"0": bytes(1)})


# those that a reader may take, with the hostile part left inert, because their weights are in order
HARMLESS = {
    "reduce in place of the tokenizer": published_with(Reduce, "tokenizer"),
    "build in place of the tokenizer": published_with(Build, "tokenizer"),
    "new in place of the tokenizer": published_with(new, "tokenizer"),
}
HOSTILE = {
    "reduce": lambda path, flag: torch.save({"state_dict": {}, "x": Reduce(flag)}, path),
    "reduce at the top": lambda path, flag: torch.save(Reduce(flag), path),
    "build": lambda path, flag: torch.save(Build(flag), path),
    "new": lambda path, flag: torch.save(new(flag), path),
    "reduce among the weights": published_with(Reduce, "weights"),
    "build among the weights": published_with(Build, "weights"),
    "reduce in the average": published_with(Reduce, "average"),
    "global": raw(lambda flag: in_state_dict(call(flag)[2:])),
    "stack global": raw(lambda flag: in_state_dict(call(flag, text("os") + text("system") + b"\x93")[2:])),
    "stack global with dots": raw(lambda flag: in_state_dict(call(flag, text("torch") + text("os.system") + b"\x93")[2:])),
    "stack global of no strings": raw(lambda flag: in_state_dict(b"NN\x93" + text(str(flag)) + b"\x85R")),
    "stack global from a call": raw(
        # the module's name is itself the result of a call
        lambda flag: in_state_dict(b"cbuiltins\nstr\n" + text("os") + b"\x85R" + text("system") + b"\x93" + call(flag, b"")[2:])
    ),
    "inst": raw(lambda flag: in_state_dict(b"(" + text(f"touch {flag}") + b"ios\nsystem\n")),
    "obj": raw(lambda flag: in_state_dict(b"(cos\nsystem\n" + text(f"touch {flag}") + b"o")),
    "getattr": raw(
        lambda flag: in_state_dict(
            b"cbuiltins\ngetattr\ncos\nsystem\n" + text("__call__") + b"\x86R" + text(f"touch {flag}") + b"\x85R"
        )
    ),
    "build on a tensor function": raw(
        lambda flag: in_state_dict(b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("__code__") + call(flag)[2:] + b"sb")
    ),
    "build on an ordered dict": raw(lambda flag: in_state_dict(b"ccollections\nOrderedDict\n)R" + call(flag)[2:] + b"b")),
    "ordered dict with arguments": raw(lambda flag: in_state_dict(b"ccollections\nOrderedDict\n]\x85R")),
    "extension": raw(lambda flag: in_state_dict(b"\x82\x01" + text(f"touch {flag}") + b"\x85R")),
    "persistent id of callables": raw(
        lambda flag: in_state_dict(b"(" + text("storage") + b"cos\nsystem\n" + text("0") + text("cpu") + b"K\x01tQ")
    ),
    "persistent id from a call": raw(lambda flag: in_state_dict(call(flag)[2:] + b"Q")),
    "textual persistent id": raw(lambda flag: in_state_dict(b"Pos.system\n")),
    "nested zip": nested,
    "nested zip alone": only_nested,
    "path traversal": with_record("../../evil.sh"),
    "path traversal, absolute": with_record("/tmp/evil.sh"),
    "path traversal, backslashes": with_record("..\\evil.sh"),
    "path traversal in a storage": lambda path, flag: tensor(path, 4, (4,), (1,), key="../byteorder"),
    "storage that is no name": lambda path, flag: tensor(path, 4, (4,), (1,), key=7),
    "storage of another type": lambda path, flag: tensor(path, 4, (4,), (1,), kind=Reduce),
    "two pickles": with_record("other/data.pkl"),
    "compressed": compressed,
    "oversized storage": lambda path, flag: tensor(path, 10**12, (10**12,), (1,)),
    "oversized tensor": lambda path, flag: tensor(path, 4, (10**12,), (1,)),
    "expanded tensor": lambda path, flag: tensor(path, 4, (10**6, 10**6), (0, 0)),
    "tensor beyond its storage": lambda path, flag: tensor(path, 4, (2,), (1,), offset=3),
    "tensor before its storage": lambda path, flag: tensor(path, 4, (2,), (1,), offset=-1),
    "negative stride": lambda path, flag: tensor(path, 4, (2,), (-1,), offset=1),
    "short storage": lambda path, flag: tensor(path, 4, (4,), (1,), record=bytes(15)),
    "memo of four thousand million": raw(lambda flag: in_state_dict(b"N" + b"r" + b"\xff" * 4 + b"\x8a\x01\x00")),
    "string of an exabyte": raw(lambda flag: in_state_dict(b"\x8d" + struct.pack("<Q", 1 << 60) + b"x")),
    "bytearray of an exabyte": raw(lambda flag: in_state_dict(b"\x96" + struct.pack("<Q", 1 << 60) + b"x")),
    "integer without end": raw(lambda flag: in_state_dict(b"\x8b" + struct.pack("<i", 1 << 16) + b"\x7f" * (1 << 16))),
    "doubling lists": raw(lambda flag: in_state_dict(b"]q\x00" + b"(h\x00h\x00lq\x00" * 100)),
    "deep key": raw(lambda flag: in_state_dict(b"})" + b"\x85" * 400_000 + b"Ns")),
    "deep nest": raw(lambda flag: in_state_dict(b")" + b"\x85" * 100_000)),
    "list in itself": raw(lambda flag: in_state_dict(b"]q\x00h\x00a")),
    "empty stack": raw(lambda flag: b"\x80\x02R."),
    "no stop": raw(lambda flag: b"\x80\x02]" + b"]" * 10),
    "legacy": legacy,
    "bare pickle": lambda path, flag: path.write_bytes(pickle.dumps(Reduce(flag))),
}
