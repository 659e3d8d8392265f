"""Samplers of discrete paths by name."""

from collections.abc import Callable
from functools import partial

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
from flm.samplers.options import Without

MASK_SOLVERS: dict[str, Callable[..., MaskedSampler]] = {
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
}
# for a source that cannot be told from data, where nothing can go by masks
JUMP_SOLVERS: dict[str, Callable[..., MaskedSampler]] = {
    name: Without(kind, "block_length", "end_last", "stop_at_end")
    for name, kind in {"exact": BlindExactJumps, "euler": EulerJumps}.items()
}
