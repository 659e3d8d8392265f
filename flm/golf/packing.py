"""How a model is rounded so that it fits: the bits of each block as published, or the finest step of all rows."""

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor, nn

from flm.checkpoints.description import Description
from flm.golf.entropy_coder import expected_bytes
from flm.golf.packed import ZLIB, ZSTD, file_of, has_zstandard, serialised
from flm.golf.quantise import SMALL, TABLE_BITS, Plan, Quantised, from_the_middle, num_blocks

# of zstandard: the first finds what fits, in a second where 16 takes half a minute; which is smallest changes by model
LEVELS = (1, 16, 17, 2)
FINE_STEP = 0.1  # root mean squares of a row: 5.4 bits a Gaussian weight, and 2.9 % off; finer only costs bytes
COARSE_STEP = 1.0
_CLOSE = 0.998  # of the limit: near enough
_AIM = 0.9994
Rounding = Literal["published", "step", "int8"]


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


@dataclass(frozen=True)
class _Parts:
    """Parameters and buffers of a state dict, each once, and the name each further name of one stands for."""

    parameters: dict[str, Tensor]
    others: dict[str, Tensor]
    aliases: dict[str, str]

    @classmethod
    def of(cls, model: nn.Module) -> "_Parts":
        names: dict[int, str] = {}
        parts = cls({}, {}, {})
        for name, tensor in model.state_dict(keep_vars=True).items():
            first = names.setdefault(id(tensor), name)
            if first != name:
                parts.aliases[name] = first
            elif isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
                parts.parameters[name] = tensor.detach().cpu()
            else:
                parts.others[name] = tensor.detach().cpu()
        return parts

    def rounded(
        self, plan: Plan, floor: bool = False, moments: Mapping[str, Tensor] | None = None
    ) -> dict[str, Quantised | Tensor]:
        found = {}
        for name, weight in self.parameters.items():
            try:
                found[name] = plan.rounded(name, weight, floor, (moments or {}).get(name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return found

    def raw(self, rounded: Mapping[str, Quantised | Tensor], description: Description, entropy_coded: bool = False) -> bytes:
        return serialised(rounded, self.others, self.aliases, description, entropy_coded)


def pack(
    model: nn.Module,
    description: Description,
    max_bytes: int | None,
    floor: bool = False,
    small: int = SMALL,
    rounding: Rounding = "published",
    moments: Mapping[str, Tensor] | None = None,
) -> Packed:
    """The model in at most so many bytes.

    Args:
        max_bytes: None for no limit.
        floor: see `quantise`; of the published rounding.
        small: see `Plan.of`.
        rounding: published: 6 bits for matrices of blocks, 5 for those of ever more blocks from the middle until it fits. step:
            the finest step for all rows under which it fits, from `FINE_STEP` on, in as many bytes as the entropy of the codes.
            int8: 8 bits for all, compressed by zlib, as the track's embedding flow was.
        moments: of the inputs of matrices, by the names of these, see `quantise_by_step`; of rounding by steps.

    Raises:
        ValueError: it does not fit, and by how much; or a weight cannot be rounded, which.
    """
    parts = _Parts.of(model)
    if rounding == "step":
        return _Steps(parts, description, small, moments).packed(max_bytes)
    base = Plan.of(parts.parameters, (), small)
    if rounding == "int8":
        plans = [replace(base, bits={name: max(bits, TABLE_BITS) for name, bits in base.bits.items()})]
    else:
        order = from_the_middle(num_blocks(parts.parameters))
        plans = [Plan.of(parts.parameters, order[:count], small) for count in range(len(order) + 1)]
    compressions = _by_zlib if rounding == "int8" else _compressed
    tried: dict[Plan, int] = {}
    for plan in plans:
        raw, found = parts.raw(parts.rounded(plan, floor), description), []
        rest = compressions(raw)
        for compressed in rest:
            found.append(file_of(raw, *compressed))
            tried[plan] = min(map(len, found))
            if max_bytes is None or not max_bytes < tried[plan] < 1.05 * max_bytes:
                break  # else another level may save a whole block's bit
        if max_bytes is None or tried[plan] <= max_bytes:
            found += [file_of(raw, *compressed) for compressed in rest]
            return Packed(min(found, key=len), plan, tried)
    raise _too_large(min(tried.values()), "in 8 bits" if rounding == "int8" else "with all blocks in 5 bits", max_bytes)


class _Steps:
    """The search for the finest step; what a step costs is known from how often each code comes, without compressing."""

    def __init__(self, parts: _Parts, description: Description, small: int, moments: Mapping[str, Tensor] | None):
        self.parts, self.description, self.moments = parts, description, moments
        self.base = Plan.of(parts.parameters, (), small)
        self.tried: dict[Plan, int] = {}
        coarse = replace(self.base, step=COARSE_STEP)
        found = parts.rounded(coarse)
        self._last = (coarse, False), found  # the plan, and whether errors were fed back
        self.elements = sum(one.codes.numel() for one in found.values() if isinstance(one, Quantised))
        blank = {name: replace(one, codes=one.codes[:0]) if isinstance(one, Quantised) else one for name, one in found.items()}
        self.rest = len(self._file(blank))  # all but the codes

    def packed(self, max_bytes: int | None) -> Packed:
        plan = self._finest(max_bytes, False)
        if plan is not None and self.moments:
            plan = self._finest(max_bytes, True, plan.step)
        while plan is not None:
            content, expected = self._file(self._rounded(plan, bool(self.moments))), self.tried[plan]
            self.tried[plan] = len(content)
            if max_bytes is None or len(content) <= max_bytes:
                return Packed(content, plan, self.tried)
            self.rest += len(content) - expected  # the estimate was some bytes short
            plan = self._finest(max_bytes, bool(self.moments), plan.step)
        raise _too_large(min(self.tried.values()), "at the coarsest step", max_bytes)

    def _file(self, rounded: Mapping[str, Quantised | Tensor]) -> bytes:
        raw = self.parts.raw(rounded, self.description, entropy_coded=True)
        return file_of(raw, *next(_compressed(raw)))

    def _bytes(self, plan: Plan, feedback: bool) -> int:
        found = self._rounded(plan, feedback).values()
        counts = [np.bincount(one.bytes(), minlength=256) for one in found if isinstance(one, Quantised)]
        return self.rest + math.ceil(expected_bytes(counts))

    def _rounded(self, plan: Plan, feedback: bool) -> dict[str, Quantised | Tensor]:
        if self._last[0] != (plan, feedback):
            self._last = (plan, feedback), self.parts.rounded(plan, moments=self.moments if feedback else None)
        return self._last[1]

    def _finest(self, max_bytes: int | None, feedback: bool, step: float = FINE_STEP) -> Plan | None:
        """The plan of the smallest step that fits, to a few thousandths of the limit, `step` tried first; None: none does."""
        best, coarse, fine = None, COARSE_STEP, FINE_STEP
        for _ in range(12):
            plan = replace(self.base, step=step)
            size = self.tried[plan] = self._bytes(plan, feedback)
            if max_bytes is None or size <= max_bytes:
                best, coarse = plan, step
                if step == FINE_STEP or size > _CLOSE * max_bytes:  # without a limit the first fits
                    break
            else:
                fine = step
                if step == COARSE_STEP:
                    break
            # twice the step is one bit less of each weight; aimed a little below the limit, and by no more than all bits
            aim = step * 2 ** min((size - _AIM * max_bytes) * 8 / max(self.elements, 1), 32)
            aimed = aim if fine < aim < coarse else COARSE_STEP if best is None and aim >= coarse else math.sqrt(fine * coarse)
            step = FINE_STEP if best is not None and aim <= FINE_STEP else aimed
        return best


def _too_large(least: int, limit: str, max_bytes: int | None) -> ValueError:
    return ValueError(
        f"the packed weights are {least:,} bytes {limit}, and {max_bytes:,} are left for them: "
        "take a smaller model, count less code (artifact.code) or raise artifact.limit_bytes"
    )


def _by_zlib(raw: bytes) -> Iterator[tuple[int, bytes]]:
    yield ZLIB, zlib.compress(raw, 9)


def _compressed(raw: bytes) -> Iterator[tuple[int, bytes]]:
    if not has_zstandard():
        yield from _by_zlib(raw)
        return
    import zstandard

    for level in LEVELS:
        yield ZSTD, zstandard.ZstdCompressor(level=level).compress(raw)
