"""One loss for one optimiser step, however its global batch is cut into micro-batches and processes."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

from flm.algos.algorithm import Loss, over
from flm.training.sharding import local


class StepLoss:
    """Adds up the losses of the micro-batches of one optimiser step."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, name: str, loss: Loss) -> None:
        """name: of the loss itself, beside those of its metrics."""
        for key, (value, count) in {name: (loss.sum.detach(), loss.count), **loss.metrics}.items():
            total, counted = self._sums.get(key, (0.0, 0.0))
            self._sums[key] = total + value.double(), counted + count.double()

    def finish(self, name: str, reduce: Callable[[Tensor], Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Every mean over all processes by name, and the count that the loss was divided by; begins the next step.

        Args:
            reduce: adds a tensor up over all processes, all of which must call it with the same names.
        """
        sums, counts = reduce(torch.stack([torch.stack(pair) for pair in self._sums.values()])).unbind(1)
        means = dict(zip(self._sums, sums / over(counts), strict=True))
        count = over(counts)[list(self._sums).index(name)]
        self._sums = {}
        return means, count


@torch.no_grad()
def scale_gradients(parameters: Iterable[Parameter], factor: Tensor) -> None:
    """factor: a number on the gradients' device, which nobody waits for."""
    gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
