"""Stops a run whose loss is no longer a number."""

import torch
from torch import Tensor


class FiniteCheck:
    """Watches losses without making the device wait.

    The verdict on a loss travels to the host while the backward pass is still queued; it is read once that pass is
    queued, before the optimiser uses the gradients.
    """

    def __init__(self) -> None:
        self._finite: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def watch(self, loss: Tensor) -> None:
        finite = torch.isfinite(loss.detach()).all()
        if finite.is_cuda:
            self._finite = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._finite, self._arrived = finite, None

    def verdict(self) -> bool:
        """Whether the last watched loss was finite; True if none was watched."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._finite is None or bool(self._finite)
