"""Samplers of discrete paths by name, from flat options."""

from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import partial
from typing import Any

from flm.samplers.discrete_flow import BlindExactJumps, EulerJumps, ExactJumps
from flm.samplers.masked import AncestralSampler, MaskedSampler
from flm.samplers.masked_confidence import (
    CONFIDENCES,
    ConfidenceSampler,
    DrawnConfidenceSampler,
    PathPlanningSampler,
    RandomOrderSampler,
    ThresholdSampler,
)
from flm.samplers.masked_remasking import LoopingSampler, RemaskingSampler, RescaledRemaskingSampler
from flm.samplers.token_policy import Ending, TokenPolicy
from flm.schema import merged


class FromOptions:
    """A class of samplers, called with flat options: its own, those of `TokenPolicy` and those of `Ending`.

    Args:
        kind: the class, or a partial of it.
        without: options that mean nothing to it.
    """

    PARTS = {"policy": TokenPolicy, "ending": Ending}

    def __init__(self, kind: Callable[..., MaskedSampler], without: Iterable[str] = ()):
        self.kind = kind
        self.__name__ = getattr(kind, "func", kind).__name__
        self.__signature__ = merged(kind, *self.PARTS.values(), without={*self.PARTS, *without})

    def __call__(self, **options: Any) -> MaskedSampler:
        parts = {}
        for name, part in self.PARTS.items():
            own = {field.name for field in fields(part)} & set(options)
            parts[name] = part(**{key: options.pop(key) for key in own})
        return self.kind(**parts, **options)


MASK_SOLVERS: dict[str, Callable[..., MaskedSampler]] = {
    name: FromOptions(kind)
    for name, kind in {
        "ancestral": AncestralSampler,
        "exact": ExactJumps,
        "euler": EulerJumps,
        **{name: partial(ConfidenceSampler, name) for name in CONFIDENCES},
        "random_order": RandomOrderSampler,
        "threshold": ThresholdSampler,
        "low_confidence": DrawnConfidenceSampler,
        "p2": PathPlanningSampler,
        "remask_cap": RemaskingSampler,
        "remask_rescale": RescaledRemaskingSampler,
        "remask_loop": LoopingSampler,
    }.items()
}
# for a source that cannot be told from data, where nothing can go by masks
JUMP_SOLVERS: dict[str, Callable[..., MaskedSampler]] = {
    name: FromOptions(kind, without=("block_length", "end_last", "stop_at_end"))
    for name, kind in {"exact": BlindExactJumps, "euler": EulerJumps}.items()
}
