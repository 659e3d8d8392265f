"""The file format of packed models: compressed weights of few bits with a description, read without executing anything.

    8 bytes   FLMPACK and the format's version
    1 byte    compression of the rest: 1 zstandard, 2 zlib
    4 bytes   length of the rest before compression, little-endian
    32 bytes  SHA-256 of the compressed rest
    the rest  a compressed safetensors file, with the description in its metadata

Parameters are rounded by `flm.golf.quantise`, and tied ones are stored once. Buffers (clocks, tables of constants) are stored
exactly. The codes of a weight are stored under its name. Version 2 can also store the codes of all weights together, as
`entropy_coder` writes them. `flm.golf.packing` makes such files.
"""

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from flm.checkpoints.description import KEY, Description
from flm.golf.entropy_coder import TOTAL, decode, encode
from flm.golf.quantise import Quantised
from flm.handed_in import regular_file

MAGIC = b"FLMPACK\x02"
_READ = (b"FLMPACK\x01", MAGIC)
_HEADER = struct.Struct("<8sBI32s")
ZSTD, ZLIB = 1, 2
_SCALES = "|scales"  # after the name of a weight; no module has such a name
_WORDS, _FREQUENCIES = "|words", "|frequencies"  # names of the entropy-coded codes of all weights
MOST_BYTES = (1 << 32) - 1  # before compression; the header has 4 bytes for it
# A file that claims to decompress to more than times * its size + spare is refused: codes of 5 bits do not shrink 200-fold.
_MOST_TIMES, _SPARE_BYTES = 256, 1 << 26
# A limit on the description, since parsed JSON takes thirty times its size in memory. A tokenizer compresses to a third or
# less, and the file holds the weights as well, so real models stay far below it.
_MOST_TIMES_TEXT, _SPARE_TEXT = 8, 1 << 20
_NOT_KEPT = {"average", "average_updates"}  # fields of a description that are not stored, since there is one set of weights


# errors that parsing raises if the bytes are not the content of an artifact
_NOT_ONE = (
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,  # infinity as a size
    RuntimeError,  # includes RecursionError
    ValueError,  # includes the errors of JSON and Unicode
    safetensors.SafetensorError,
)


def serialised(
    rounded: Mapping[str, Quantised | Tensor],
    others: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    description: Description,
    entropy_coded: bool = False,
) -> bytes:
    """The bytes of a packed model before compression, a safetensors file.

    Args:
        rounded: parameters by name; those that are not `Quantised` are stored as they are.
        others: buffers by name.
        aliases: further names of parameters and buffers, each with the name under which the tensor is stored.
        entropy_coded: stores codes in about as many bytes as their entropy, else as int8, which the compressor shrinks.
    """
    tensors = {name: tensor.contiguous().clone() for name, tensor in others.items()}
    quantised = {name: found for name, found in rounded.items() if isinstance(found, Quantised)}
    tensors |= {name: found.contiguous() for name, found in rounded.items() if name not in quantised}
    tensors |= {name + _SCALES: found.scales for name, found in quantised.items()}
    about = {item.name: getattr(description, item.name) for item in fields(description) if item.name not in _NOT_KEPT}
    about |= {"parameters": sorted(rounded), "aliases": dict(aliases)}
    if entropy_coded and quantised:
        words, frequencies = encode([found.bytes() for found in quantised.values()])
        tensors |= {_WORDS: torch.from_numpy(words.view("int16")), _FREQUENCIES: torch.from_numpy(frequencies.view("int16"))}
        about["coded"] = [[name, list(found.codes.shape)] for name, found in quantised.items()]
    else:
        tensors |= {name: found.codes.contiguous() for name, found in quantised.items()}
    return safetensors.torch.save(tensors, {KEY: json.dumps(about, separators=(",", ":"), ensure_ascii=False)})


def file_of(raw: bytes, codec: int, compressed: bytes) -> bytes:
    """The content of the file: a header, then `compressed`, which is `raw` compressed by ZSTD or ZLIB.

    Raises:
        ValueError: `raw` has 4 GiB or more.
    """
    if len(raw) > MOST_BYTES:
        raise ValueError("a model of 4 GiB or more in 8 bits does not fit this format")
    return _HEADER.pack(MAGIC, codec, len(raw), hashlib.sha256(compressed).digest()) + compressed


def read(path: str | Path) -> tuple[Description, dict[str, Tensor]]:
    """The file's description, and a state dict: rounded weights in float32, and buffers.

    The description's average holds the same weights as the state dict. The file has one set of weights, whether or not they
    were averaged ones.

    Raises:
        ValueError: the file is unreadable, cut short, damaged, of another version or not of this format, or needs a library
            that is not installed. The message names the file.
    """
    name = str(path)
    try:
        content = regular_file(path, _HEADER.size + MOST_BYTES).read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: not a readable artifact ({getattr(error, 'strerror', None) or error})") from error
    raw = _uncompressed(content, name)
    try:
        about, state = _parsed(raw, len(content))
    except _NOT_ONE as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise ValueError(f"{name}: damaged artifact: its content is not that of one ({why})") from error
    return Description.of({KEY: about}, name), state


def _parsed(raw: bytes, size: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and state dict from the bytes that `serialised` wrote. Raises one of _NOT_ONE if they are malformed.

    Args:
        size: bytes of the compressed file, which limits the description.
    """
    length = int.from_bytes(raw[:8], "little")
    if length > _MOST_TIMES_TEXT * size + _SPARE_TEXT:
        raise ValueError(f"{size:,} bytes promise {length:,} of description")
    stored = safetensors.torch.load(raw)
    about = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"][KEY])
    parameters, aliases = dict.fromkeys(about.pop("parameters")), about.pop("aliases")  # without duplicates
    codes = stored | _decoded(about.pop("coded", []), stored)
    state = {key: value for key, value in stored.items() if key not in parameters and "|" not in key}
    for key in parameters:
        scales = stored.get(key + _SCALES)
        state[key] = stored[key].float() if scales is None else Quantised(codes[key], scales).weight()
    state |= {alias: state[key] for alias, key in aliases.items()}
    return about | {"average": {key: state[key] for key in parameters}, "average_updates": 0}, state


def _decoded(coded: Sequence[Any], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """int8 codes by name, decoded from the entropy-coded words in `stored`.

    Args:
        coded: pairs of a name and a shape; empty: the codes are not entropy-coded, and the result is empty.
    """
    if not coded:
        return {}
    shapes = {str(key): [int(size) for size in shape] for key, shape in coded}
    sizes = [math.prod(shape) if min(shape, default=0) > 0 else 0 for shape in shapes.values()]
    words, frequencies = (stored[key].numpy().view("uint16") for key in (_WORDS, _FREQUENCIES))
    if sum(sizes) + TOTAL * len(sizes) > _MOST_TIMES * words.nbytes + _SPARE_BYTES:  # decoding builds a table per weight
        raise ValueError(f"{words.nbytes:,} bytes promise {sum(sizes):,} codes of {len(sizes):,} weights")
    found = decode(words, frequencies, sizes)
    return {
        key: torch.from_numpy(one.view("int8")).reshape(shape) for (key, shape), one in zip(shapes.items(), found, strict=True)
    }


class PackedFile:
    """The kind of model file that this module reads."""

    @staticmethod
    def matches(path: Path) -> bool:
        """Whether the file begins like a packed model of any version; False if it cannot be read."""
        try:
            with open(path, "rb") as file:
                return file.read(len(MAGIC) - 1) == MAGIC[:-1]
        except OSError:
            return False

    read = staticmethod(read)


def has_zstandard() -> bool:
    """Whether zstandard is installed. Without it files are compressed by zlib and are a few percent larger."""
    try:
        import zstandard  # noqa: F401
    except ImportError:
        return False
    return True


def _uncompressed(content: bytes, name: str) -> bytes:
    if not content.startswith(MAGIC[:-1]):
        raise ValueError(f"{name}: not an artifact of this project")
    if len(content) < _HEADER.size:
        raise ValueError(f"{name}: damaged artifact: cut short")
    magic, codec, length, digest = _HEADER.unpack_from(content)
    if magic not in _READ:
        raise ValueError(
            f"{name}: artifact format {magic[-1]}; this code reads format {MAGIC[-1]}: use the version that wrote it"
        )
    compressed = content[_HEADER.size :]
    if hashlib.sha256(compressed).digest() != digest:
        raise ValueError(f"{name}: damaged artifact: its checksum does not match, it is cut short or was changed")
    if codec == ZSTD and not has_zstandard():
        raise ValueError(f"{name}: compressed with zstandard: pip install zstandard")
    if length > _MOST_TIMES * len(compressed) + _SPARE_BYTES:
        raise ValueError(f"{name}: damaged artifact: {len(compressed):,} bytes promise {length:,}, refused before reading them")
    try:
        raw = _at_most(compressed, codec, length + 1)
    except Exception as error:  # zstandard.ZstdError and zlib.error share no base
        raise ValueError(f"{name}: damaged artifact: it does not decompress ({error})") from error
    if len(raw) != length:
        found = f"{len(raw):,}" if len(raw) < length else "more"
        raise ValueError(f"{name}: damaged artifact: {found} bytes in place of {length:,}")
    return raw


def _at_most(compressed: bytes, codec: int, size: int) -> bytes:
    """The first `size` decompressed bytes, or all if there are fewer. The rest is not decompressed."""
    if codec != ZSTD:
        return zlib.decompressobj().decompress(compressed, size)
    import zstandard

    with zstandard.ZstdDecompressor().stream_reader(compressed) as stream:
        return stream.read(size)
