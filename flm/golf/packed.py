"""A model in one small file that describes itself: weights in few bits, compressed, read back without executing anything.

    8 bytes   FLMPACK and the format's version
    1 byte    how the rest is compressed: 1 zstandard, 2 zlib
    4 bytes   length before compression, little-endian
    32 bytes  SHA-256 of what follows
    the rest  compressed: a safetensors file whose metadata hold the description

Parameters are rounded as `quantise` says, and tied ones kept once. Buffers are no weights (clocks, tables of constants) and
kept to the bit.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from flm.checkpoints.description import KEY, Description
from flm.golf.quantise import (
    KEPT,
    SMALL,
    TABLE_BITS,
    TABLE_PERCENTILE,
    Plan,
    Quantised,
    from_the_middle,
    num_blocks,
    quantise,
)
from flm.handed_in import regular_file

MAGIC = b"FLMPACK\x01"
_HEADER = struct.Struct("<8sBI32s")
ZSTD, ZLIB = 1, 2
LEVELS = (16, 1, 17, 2)  # of zstandard: which is smallest changes from model to model, by a thousandth
_SCALES = "|scales"  # after the name of a weight; no module has such a name
# A promise beyond both is no model: codes of 5 bits do not shrink to a two-hundredth.
MOST_BYTES = (1 << 32) - 1  # of what is compressed, as the header can say
_MOST_TIMES, _SPARE_BYTES = 256, 1 << 26
_NOT_KEPT = {"average", "average_updates"}  # of a description: the weights are one set


# what comes of bytes that are not the content of an artifact
_NOT_ONE = (
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,  # with RecursionError
    json.JSONDecodeError,
    UnicodeDecodeError,
    safetensors.SafetensorError,
)


@dataclass(frozen=True)
class Packed:
    """A model as bytes.

    Attributes:
        content: of the file.
        plan: bits of each parameter.
        tried: what was tried on the way, in bytes, by the blocks that had fewer bits.
    """

    content: bytes
    plan: Plan
    tried: dict[tuple[int, ...], int]


def pack(model: nn.Module, description: Description, max_bytes: int | None, floor: bool = False, small: int = SMALL) -> Packed:
    """The model in at most so many bytes: 6 bits for matrices of blocks, 5 for those of ever more blocks from the middle.

    Args:
        max_bytes: None for no limit.
        floor: see `quantise`.
        small: see `Plan.of`.

    Raises:
        ValueError: with 5 bits in all blocks it is still larger, and by how much; or a weight cannot be rounded, which.
    """
    parameters, others, aliases = _parts(model)
    order = from_the_middle(num_blocks(parameters))
    tried: dict[tuple[int, ...], int] = {}
    for count in range(len(order) + 1):
        plan = Plan.of(parameters, order[:count], small)
        raw = _serialised(parameters, others, aliases, plan, floor, description)
        content = _smallest(raw, max_bytes)
        tried[plan.fewer] = len(content)
        if max_bytes is None or len(content) <= max_bytes:
            return Packed(content, plan, tried)
    raise ValueError(
        f"the packed weights are {min(tried.values()):,} bytes with all blocks in 5 bits, and {max_bytes:,} are left for them: "
        "take a smaller model, count less code (artifact.code) or raise artifact.limit_bytes"
    )


def read(path: str | Path) -> tuple[Description, dict[str, Tensor]]:
    """What the file says of itself, and a state dict: float32 weights as they were rounded, and buffers.

    The description's average names the very same weights, since there is but one set, whichever it was packed from.

    Raises:
        ValueError: naming the file: it is cut short or damaged, of another version, or not of this format; or it needs a
            library that is not there.
    """
    name = str(path)
    try:
        content = regular_file(path, _HEADER.size + MOST_BYTES).read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: not a readable artifact ({getattr(error, 'strerror', None) or error})") from error
    raw = _uncompressed(content, name)
    try:
        stored = safetensors.torch.load(raw)
        length = int.from_bytes(raw[:8], "little")
        about = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"][KEY])
        parameters, aliases = about.pop("parameters"), about.pop("aliases")
        state = {key: value for key, value in stored.items() if key not in parameters and not key.endswith(_SCALES)}
        for key in parameters:
            scales = stored.get(key + _SCALES)
            state[key] = stored[key].float() if scales is None else Quantised(stored[key], scales).weight()
        state |= {alias: state[key] for alias, key in aliases.items()}
        average = {key: state[key] for key in parameters}
        description = Description.of({KEY: about | {"average": average, "average_updates": 0}}, name)
    except _NOT_ONE as error:
        raise ValueError(f"{name}: damaged artifact: its content is not that of one ({type(error).__name__})") from error
    return description, state


class PackedFile:
    """Such files among the kinds of model file."""

    @staticmethod
    def matches(path: Path) -> bool:
        """Whether the file begins as one, of any version; False where it cannot be read."""
        try:
            with open(path, "rb") as file:
                return file.read(len(MAGIC) - 1) == MAGIC[:-1]
        except OSError:
            return False

    read = staticmethod(read)


def _parts(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """Parameters and buffers of the state dict, each once, and the name each further name of one stands for."""
    names: dict[int, str] = {}
    parameters, others, aliases = {}, {}, {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = names.setdefault(id(tensor), name)
        if first != name:
            aliases[name] = first
        elif isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            parameters[name] = tensor.detach().cpu()
        else:
            others[name] = tensor.detach().cpu()
    return parameters, others, aliases


def _serialised(
    parameters: Mapping[str, Tensor],
    others: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    plan: Plan,
    floor: bool,
    description: Description,
) -> bytes:
    tensors = {name: tensor.contiguous().clone() for name, tensor in others.items()}
    for name, weight in parameters.items():
        try:
            tensors |= _rounded(name, weight, plan.bits[name], floor)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    about = {item.name: getattr(description, item.name) for item in fields(description) if item.name not in _NOT_KEPT}
    about |= {"parameters": sorted(parameters), "aliases": dict(aliases)}
    return safetensors.torch.save(tensors, {KEY: json.dumps(about, separators=(",", ":"), ensure_ascii=False)})


def _rounded(name: str, weight: Tensor, bits: int, floor: bool) -> dict[str, Tensor]:
    if bits == KEPT:
        half = weight.half()
        if not torch.isfinite(half).all():
            raise ValueError("holds weights that are no numbers, or too large for float16")
        return {name: half.contiguous()}
    found = quantise(weight, bits, TABLE_PERCENTILE if bits == TABLE_BITS else 1.0, floor)
    return {name: found.codes.contiguous(), name + _SCALES: found.scales}


def _smallest(raw: bytes, max_bytes: int | None) -> bytes:
    """The file with the smallest of a few compressions, or the first that fits."""
    if len(raw) >= 1 << 32:
        raise ValueError("a model of 4 GiB or more in 8 bits does not fit this format")
    best: bytes | None = None
    for codec, compressed in _compressed(raw):
        content = _HEADER.pack(MAGIC, codec, len(raw), hashlib.sha256(compressed).digest()) + compressed
        best = content if best is None or len(content) < len(best) else best
        if max_bytes is not None and len(best) <= max_bytes:
            break
    assert best is not None
    return best


def has_zstandard() -> bool:
    """Without it files are compressed by zlib, some percent larger."""
    try:
        import zstandard  # noqa: F401
    except ImportError:
        return False
    return True


def _compressed(raw: bytes) -> Iterator[tuple[int, bytes]]:
    if not has_zstandard():
        yield ZLIB, zlib.compress(raw, 9)
        return
    import zstandard

    for level in LEVELS:
        yield ZSTD, zstandard.ZstdCompressor(level=level).compress(raw)


def _uncompressed(content: bytes, name: str) -> bytes:
    if not content.startswith(MAGIC[:-1]):
        raise ValueError(f"{name}: not an artifact of this project")
    if len(content) < _HEADER.size:
        raise ValueError(f"{name}: damaged artifact: cut short")
    magic, codec, length, digest = _HEADER.unpack_from(content)
    if magic != MAGIC:
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
    """The first `size` bytes, or all: what lies behind them is not decompressed."""
    if codec != ZSTD:
        return zlib.decompressobj().decompress(compressed, size)
    import zstandard

    with zstandard.ZstdDecompressor().stream_reader(compressed) as stream:
        return stream.read(size)
