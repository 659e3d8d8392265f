"""Samplers of discrete paths by name, from the flat options of the `sampling` config."""

from collections.abc import Callable, Mapping
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
JUMP_SOLVERS: dict[str, Callable[..., MaskedSampler]] = {"exact": BlindExactJumps, "euler": EulerJumps}


def mask_sampler(solver: str, **options: Any) -> MaskedSampler:
    """For a mask source.

    Args:
        solver: a key of MASK_SOLVERS.
        options: of TokenPolicy, of Ending, and of the solver's class.

    Raises:
        ValueError: there is no such solver, or an option is out of range.
        TypeError: the solver has no such option.
    """
    return _sampler(MASK_SOLVERS, solver, options)


def jump_sampler(solver: str, **options: Any) -> MaskedSampler:
    """For a source that cannot be told from data; a key of JUMP_SOLVERS, without what goes by masks."""
    for name in ("block_length", "end_last", "stop_at_end"):
        if options.get(name):
            raise ValueError(f"sampling.{name} needs a mask source: leave it null")
    return _sampler(JUMP_SOLVERS, solver, options)


def _sampler(solvers: Mapping[str, Callable[..., MaskedSampler]], solver: str, options: dict[str, Any]) -> MaskedSampler:
    if solver not in solvers:
        raise ValueError(f"sampling.solver must be one of {', '.join(solvers)}, not {solver}")
    parts = []
    for kind in (TokenPolicy, Ending):
        names = {field.name for field in fields(kind)} & set(options)
        parts.append(kind(**{name: options.pop(name) for name in names}))
    return solvers[solver](policy=parts[0], ending=parts[1], **options)
