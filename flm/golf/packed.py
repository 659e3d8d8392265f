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
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
from torch import Tensor, nn

from flm.checkpoints.description import KEY, Description
from flm.golf.quantise import SMALL, TABLE_BITS, Plan, Quantised, from_the_middle, num_blocks
from flm.handed_in import regular_file

MAGIC = b"FLMPACK\x01"
_HEADER = struct.Struct("<8sBI32s")
ZSTD, ZLIB = 1, 2
# of zstandard: the first finds what fits, in a second where 16 takes fifteen; which is smallest changes from model to model
LEVELS = (1, 16, 17, 2)
FINE_STEP = 0.1  # root mean squares of a row: 5.4 bits a Gaussian weight, and 2.9 % off; finer only costs bytes
COARSE_STEP = 1.0
_CLOSE = 0.998  # of the limit: near enough
_SCALES = "|scales"  # after the name of a weight; no module has such a name
# A promise beyond both is no model: codes of 5 bits do not shrink to a two-hundredth.
MOST_BYTES = (1 << 32) - 1  # of what is compressed, as the header can say
_MOST_TIMES, _SPARE_BYTES = 256, 1 << 26
Rounding = Literal["published", "step", "int8"]
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
        tried: what was tried on the way, and the bytes that came of it.
    """

    content: bytes
    plan: Plan
    tried: dict[Plan, int]


def pack(
    model: nn.Module,
    description: Description,
    max_bytes: int | None,
    floor: bool = False,
    small: int = SMALL,
    rounding: Rounding = "published",
) -> Packed:
    """The model in at most so many bytes.

    Args:
        max_bytes: None for no limit.
        floor: see `quantise`; of the published rounding.
        small: see `Plan.of`.
        rounding: published: 6 bits for matrices of blocks, 5 for those of ever more blocks from the middle until it fits. step:
            the finest step for all rows under which it fits, from `FINE_STEP` on. int8: 8 bits for all, compressed by zlib, as
            the track's embedding flow was.

    Raises:
        ValueError: it does not fit, and by how much; or a weight cannot be rounded, which.
    """
    parts = _parts(model)
    base = Plan.of(parts[0], (), small)
    tried: dict[Plan, int] = {}

    def fits(plan: Plan) -> bool:
        raw = _serialised(*parts, plan, floor, description)
        for compressed in compressions(raw):
            tried[plan] = min(len(_file(raw, *compressed)), tried.get(plan, 1 << 62))
            # another level may save a whole block's bit, while a step only grows a little
            if max_bytes is None or not max_bytes < tried[plan] < 1.05 * max_bytes or plan.step is not None:
                break
        return max_bytes is None or tried[plan] <= max_bytes

    compressions = _by_zlib if rounding == "int8" else _compressed
    order = from_the_middle(num_blocks(parts[0]))
    if rounding == "int8":
        eight = replace(base, bits={name: max(bits, TABLE_BITS) for name, bits in base.bits.items()})
        chosen = eight if fits(eight) else None
    elif rounding == "step":
        chosen = _finest(base, fits, tried, max_bytes, sum(weight.numel() for weight in parts[0].values()))
    else:
        plans = (Plan.of(parts[0], order[:count], small) for count in range(len(order) + 1))
        chosen = next(filter(fits, plans), None)
    if chosen is None:
        limit = {"step": "at the coarsest step", "int8": "in 8 bits"}.get(rounding, "with all blocks in 5 bits")
        raise ValueError(
            f"the packed weights are {min(tried.values()):,} bytes {limit}, and {max_bytes:,} are left for them: "
            "take a smaller model, count less code (artifact.code) or raise artifact.limit_bytes"
        )
    raw = _serialised(*parts, chosen, floor, description)
    return Packed(min((_file(raw, *found) for found in compressions(raw)), key=len), chosen, tried)


def _finest(
    base: Plan, fits: Callable[[Plan], bool], tried: Mapping[Plan, int], max_bytes: int | None, elements: int
) -> Plan | None:
    """The plan of the smallest step that fits, to a few thousandths of the limit; None: none does."""
    step, best, coarse, fine = FINE_STEP, None, COARSE_STEP, FINE_STEP
    for _ in range(12):
        plan = replace(base, step=step)
        if fits(plan):
            best, coarse = plan, step
            if step == FINE_STEP or tried[plan] > _CLOSE * max_bytes:  # without a limit the first fits
                break
        else:
            fine = step
            if step == COARSE_STEP:
                break
        # twice the step is one bit less of each weight; aimed a little below the limit
        aim = step * 2 ** ((tried[plan] - (1 + _CLOSE) / 2 * max_bytes) * 8 / elements)
        step = aim if fine < aim < coarse else COARSE_STEP if best is None and aim >= coarse else math.sqrt(fine * coarse)
    return best


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
            found = plan.rounded(name, weight, floor)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if isinstance(found, Quantised):
            tensors |= {name: found.codes.contiguous(), name + _SCALES: found.scales}
        else:
            tensors[name] = found.contiguous()
    about = {item.name: getattr(description, item.name) for item in fields(description) if item.name not in _NOT_KEPT}
    about |= {"parameters": sorted(parameters), "aliases": dict(aliases)}
    return safetensors.torch.save(tensors, {KEY: json.dumps(about, separators=(",", ":"), ensure_ascii=False)})


def _file(raw: bytes, codec: int, compressed: bytes) -> bytes:
    if len(raw) >= 1 << 32:
        raise ValueError("a model of 4 GiB or more in 8 bits does not fit this format")
    return _HEADER.pack(MAGIC, codec, len(raw), hashlib.sha256(compressed).digest()) + compressed


def has_zstandard() -> bool:
    """Without it files are compressed by zlib, some percent larger."""
    try:
        import zstandard  # noqa: F401
    except ImportError:
        return False
    return True


def _by_zlib(raw: bytes) -> Iterator[tuple[int, bytes]]:
    yield ZLIB, zlib.compress(raw, 9)


def _compressed(raw: bytes) -> Iterator[tuple[int, bytes]]:
    if not has_zstandard():
        yield from _by_zlib(raw)
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
