"""AdamW with separate groups for the parameters that a retrofit adds to a pretrained network."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.nn import Parameter

from flm.ranges import BelowOne, NonNegative, PositiveShare, Rate
from flm.training.optimizers import AdamW


@dataclass(frozen=True)
class GroupOptions:
    """Options of a separate group; None: as for all other parameters."""

    lr: Rate | None = None
    betas: tuple[BelowOne, BelowOne] | None = None
    eps: PositiveShare | None = None
    weight_decay: NonNegative | None = None


class GroupedAdamW(AdamW):
    """AdamW in which parameters whose names contain a key of `apart` form a group with its own options.

    Schedules scale the learning rates of all groups alike.

    Args:
        params: (name, parameter) pairs.
        apart: options (lr, weight_decay, betas, eps) by key; options not given are as for all others. A key that is in no name
            makes no group, so that the same config serves a model without these parameters.
        options: of all other parameters, as in AdamW.

    Raises:
        ValueError: a name contains two keys.
    """

    def __init__(self, params: Iterable[tuple[str, Parameter]], apart: Mapping[str, GroupOptions], **options: Any):
        groups: dict[str | None, list[tuple[str, Parameter]]] = {None: [], **{key: [] for key in apart}}
        for name, parameter in params:
            keys = [key for key in apart if key in name]
            if len(keys) > 1:
                raise ValueError(f"optim.apart: {name} contains both {keys[0]!r} and {keys[1]!r}")
            groups[keys[0] if keys else None].append((name, parameter))
        found = [{"params": named, **(_given(apart[key]) if key else {})} for key, named in groups.items() if named]
        super().__init__(found, **options)


def _given(options: GroupOptions | Mapping[str, Any]) -> dict[str, Any]:
    found = vars(options) if isinstance(options, GroupOptions) else options
    return {name: value for name, value in found.items() if value is not None}
