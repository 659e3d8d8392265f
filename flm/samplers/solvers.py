"""Samplers by name, as the option `solver` takes them."""

from collections.abc import Callable
from functools import partial
from typing import Any

from flm.samplers.discrete_flow import BlindExactJumps, EulerJumps, ExactJumps
from flm.samplers.flow import FlowSampler
from flm.samplers.fresh_noise import BridgeSampler, FlowMapSampler
from flm.samplers.masked import AncestralSampler
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
from flm.samplers.verified import Verifiable

Solvers = dict[str, Callable[..., Any]]


def _verifiable(kinds: Solvers) -> Solvers:
    return {name: Verifiable(kind) for name, kind in kinds.items()}


FLOW_SOLVERS = _verifiable(
    {"euler": partial(FlowSampler, "euler"), "heun": partial(FlowSampler, "heun"), "bridge": BridgeSampler}
)
FLOW_MAP_SOLVERS = _verifiable({"jump": FlowMapSampler, "bridge": BridgeSampler})
_MASK: Solvers = {
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
BLOCK_SOLVERS = _verifiable(_MASK)  # for networks with a `block_reader`
_OF_BLOCKS = ("block_sees", "block_cache")
MASK_SOLVERS = _verifiable({name: Without(kind, *_OF_BLOCKS) for name, kind in _MASK.items()})
# for a source whose noise is not visible, so that there are no masks
JUMP_SOLVERS = _verifiable(
    {
        name: Without(kind, "block_length", *_OF_BLOCKS, "end_last", "stop_at_end")
        for name, kind in {"exact": BlindExactJumps, "euler": EulerJumps}.items()
    }
)
