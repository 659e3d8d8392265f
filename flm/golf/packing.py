"""Packing a model into a limit of bytes: fewer bits for some blocks, as published, or the finest step that fits."""

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

# Levels of zstandard. The first is used to find what fits: it takes a second where level 16 takes half a minute. Which level
# gives the smallest file depends on the model.
LEVELS = (1, 16, 17, 2)
FINE_STEP = 0.1  # in root mean squares of a row: 5.4 bits for a Gaussian weight, error 2.9 %; finer only costs bytes
COARSE_STEP = 1.0
_CLOSE = 0.998  # the search stops at a size between this share of the limit and the limit
_AIM = 0.9994  # share of the limit that the next step aims at
Rounding = Literal["published", "step", "int8"]


@dataclass(frozen=True)
class Packed:
    """A packed model.

    Attributes:
        content: the bytes of the file.
        plan: how the parameters were rounded.
        tried: size in bytes, in some cases estimated, by each plan that was tried.
    """

    content: bytes
    plan: Plan
    tried: dict[Plan, int]


@dataclass(frozen=True)
class _Parts:
    """The tensors of a state dict, each under its first name.

    Attributes:
        parameters: floating-point parameters, on the CPU.
        others: buffers and other parameters, on the CPU.
        aliases: each further name of a tensor, with its first name.
    """

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
    """The model in at most `max_bytes`.

    Args:
        max_bytes: None: no limit.
        floor: see `quantise`; not for rounding="step".
        small: see `Plan.of`.
        rounding: how weights of more than `small` elements are rounded.
            "published": to 6 bits in blocks. Until the model fits, ever more blocks from the middle outward get 5 bits.
            "step": by the finest step, but not below `FINE_STEP`, with which the model fits. Codes are entropy-coded.
            "int8": to 8 bits, compressed by zlib, as the track's embedding flow was.
        moments: second moments of the inputs of matrices, by the name of the matrix, see `quantise_by_step`; only for
            rounding="step".

    Raises:
        ValueError: the model does not fit, or a weight cannot be rounded. The message has the sizes or the weight's name.
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
                break  # just above the limit another level may fit, which saves a bit in a block
        if max_bytes is None or tried[plan] <= max_bytes:
            found += [file_of(raw, *compressed) for compressed in rest]
            return Packed(min(found, key=len), plan, tried)
    raise _too_large(min(tried.values()), "in 8 bits" if rounding == "int8" else "with all blocks in 5 bits", max_bytes)


class _Steps:
    """The search for the finest step that fits. The size is estimated from the counts of codes, without encoding them."""

    def __init__(self, parts: _Parts, description: Description, small: int, moments: Mapping[str, Tensor] | None):
        self.parts, self.description, self.moments = parts, description, moments
        self.base = Plan.of(parts.parameters, (), small)
        self.tried: dict[Plan, int] = {}
        coarse = replace(self.base, step=COARSE_STEP)
        found = parts.rounded(coarse)
        self._last = (coarse, False), found  # (plan, whether with error feedback), and its result
        self.elements = sum(one.codes.numel() for one in found.values() if isinstance(one, Quantised))
        blank = {name: replace(one, codes=one.codes[:0]) if isinstance(one, Quantised) else one for name, one in found.items()}
        self.rest = len(self._file(blank))  # bytes of the file without codes

    def packed(self, max_bytes: int | None) -> Packed:
        plan = self._finest(max_bytes, False)
        if plan is not None and self.moments:
            plan = self._finest(max_bytes, True, plan.step)
        while plan is not None:
            content, expected = self._file(self._rounded(plan, bool(self.moments))), self.tried[plan]
            self.tried[plan] = len(content)
            if max_bytes is None or len(content) <= max_bytes:
                return Packed(content, plan, self.tried)
            self.rest += len(content) - expected  # the estimate was too low by so many bytes
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
        """The plan of the finest step that fits, within a few thousandths of the limit; None: none fits.

        Args:
            feedback: whether rounding uses error feedback.
            step: the first step to try.
        """
        best, coarse, fine = None, COARSE_STEP, FINE_STEP
        for _ in range(12):
            plan = replace(self.base, step=step)
            size = self.tried[plan] = self._bytes(plan, feedback)
            if max_bytes is None or size <= max_bytes:
                best, coarse = plan, step
                if step == FINE_STEP or size > _CLOSE * max_bytes:  # without a limit the first step fits
                    break
            else:
                fine = step
                if step == COARSE_STEP:
                    break
            # Doubling the step saves one bit per weight. The aim is a little below the limit; 32 bits at most avoid overflow.
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
