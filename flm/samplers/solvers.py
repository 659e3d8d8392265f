"""Samplers by name, as the option `solver` takes them."""

from collections.abc import Callable
from functools import partial

from flm.samplers.bridge import BridgeSampler
from flm.samplers.discrete_flow import BlindExactJumps, EulerJumps, ExactJumps
from flm.samplers.flow import FlowSampler, StateSampler
from flm.samplers.flow_map import FlowMapSampler
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

FLOW_SOLVERS: dict[str, Callable[..., StateSampler]] = {
    "euler": partial(FlowSampler, "euler"),
    "heun": partial(FlowSampler, "heun"),
    "bridge": BridgeSampler,
}
FLOW_MAP_SOLVERS: dict[str, Callable[..., StateSampler]] = {"jump": FlowMapSampler, "bridge": BridgeSampler}
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
