"""Anneals attention from causal to bidirectional (arXiv 2410.17891)."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from flm.ranges import Count


class AttentionAnnealing(Callback):
    """In training, each later token is visible with a probability that grows linearly from 0 to 1 over the first steps.

    The probability is a function of the step, so a resumed run continues it. Validation and sampling always see all tokens.
    While it is below 1, attention needs a mask of L x L, which the fastest kernels do not take.

    Args:
        steps: optimiser steps until all tokens are visible.

    Raises:
        ValueError: steps is below 1; or, when training starts, no network has `set_future_share`.
    """

    def __init__(self, steps: Count):
        self.steps = steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._networks(pl_module):
            raise ValueError("callbacks.annealing: the network cannot look back alone: set callbacks.annealing=null")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        share = trainer.global_step / self.steps
        for network in self._networks(pl_module):
            network.set_future_share(share if share < 1 else None)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for network in self._networks(pl_module):
            network.set_future_share(None)

    @staticmethod
    def _networks(pl_module: LightningModule) -> list[nn.Module]:
        return [module for module in pl_module.algorithm.modules() if hasattr(module, "set_future_share")]
