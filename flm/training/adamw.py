"""AdamW in one kernel per step where the device has it."""

from collections.abc import Iterable
from typing import Any

import torch

from flm.ranges import BelowOne, NonNegative, PositiveShare, Rate

FUSED_ON = {"cpu", "cuda", "xpu", "mps"}


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW, fused if all parameters are floating point on devices of FUSED_ON.

    Gradients must be unscaled before `step`, as gradient clipping needs them anyway. torch's fused optimisers announce that
    they unscale by themselves, for which Lightning would refuse to clip in mixed precision, bf16 included, where nothing is
    scaled: the announcement is withdrawn.

    Args:
        params: parameters, (name, parameter) pairs or groups of either.
        lr, betas, eps, weight_decay, amsgrad: as of torch.optim.AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Rate = 1e-3,
        betas: tuple[BelowOne, BelowOne] = (0.9, 0.999),
        eps: PositiveShare = 1e-8,
        weight_decay: NonNegative = 1e-2,
        amsgrad: bool = False,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad)
        tensors = [p for group in self.param_groups for p in group["params"]]
        if all(p.device.type in FUSED_ON and p.is_floating_point() for p in tensors):
            for group in self.param_groups:
                group["fused"] = True
