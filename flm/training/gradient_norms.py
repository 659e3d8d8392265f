"""The size of the gradients of parts of a model, before they are clipped together."""

from collections.abc import Mapping

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


class GradientNorms(Callback):
    """Logs grad/norm_<name>, the Euclidean norm of the gradients of each part, and grad/norm_others of what is in none.

    Clipping scales all gradients alike: a new part with large ones starves a pretrained network, which this shows.

    Args:
        parts: part of a parameter's name, by the name to log.
    """

    def __init__(self, parts: Mapping[str, str]):
        self.parts = dict(parts)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if (trainer.global_step + 1) % trainer.log_every_n_steps:  # Lightning logs after the step
            return
        gradients: dict[str, list[Tensor]] = {name: [] for name in (*self.parts, "others")}
        for name, parameter in pl_module.algorithm.named_parameters():
            if parameter.grad is not None:
                part = next((label for label, key in self.parts.items() if key in name), "others")
                gradients[part].append(parameter.grad)
        for label, tensors in gradients.items():
            if tensors:
                norm = torch.nn.utils.get_total_norm(tensors)
                # under FSDP2 every process has a part of the sum
                pl_module.log(f"grad/norm_{label}", norm.full_tensor() if isinstance(norm, DTensor) else norm)
