"""The loss of an optimiser step over its micro-batches and processes, and a check for divergence."""

from collections import deque
from collections.abc import Callable, Iterable
from statistics import median

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
        """Adds a micro-batch; `name` is that of the loss beside the names of its metrics."""
        for key, (value, count) in {name: (loss.sum.detach(), loss.count), **loss.metrics}.items():
            total, counted = self._sums.get(key, (0.0, 0.0))
            self._sums[key] = total + value.double(), counted + count.double()

    def finish(self, name: str, reduce: Callable[[Tensor], Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The means over all processes by name, and the count that the loss was divided by; then starts the next step.

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
    """Multiplies all gradients by a scalar tensor on their device, without waiting for it."""
    gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))


# Number of recent losses of a process whose median is compared. A mean could be raised by one bad batch, and with fewer losses
# the random times of small batches would matter too much.
RECENT = 50
LONG = 0.999  # decay of the long average
FIRST = 200  # losses before the first comparison


class DivergenceCheck:
    """Watches losses without making the device wait.

    A loss is copied to the host while the device works on the backward pass, and read before the optimiser step.

    Args:
        factor: > 1; the median of the last RECENT losses may be at most this many times the long average; None: no limit, but
            losses must be finite.
    """

    def __init__(self, factor: float | None = None):
        self._factor = factor
        self._numbers: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._average, self._count = 0.0, 0

    def watch(self, loss: Loss) -> None:
        # the loss that is minimised, and the one without learned weights
        numbers = torch.stack([loss.sum.detach().double(), loss.per_sequence.double().mean()])
        if numbers.is_cuda:
            self._numbers = torch.empty(2, dtype=torch.float64, pin_memory=True).copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._numbers, self._arrived = numbers, None

    def problem(self) -> str | None:
        """What is wrong with the last loss, to follow the words "the loss"; None: nothing. Call once after each `watch`."""
        if self._numbers is None:
            return None
        if self._arrived is not None:
            self._arrived.synchronize()
        total, level = self._numbers.tolist()
        self._numbers = None
        if not abs(total) < float("inf"):
            return "is not finite"
        if self._factor is None:
            return None
        self._recent.append(level)
        self._count += 1
        decay = min(LONG, 1 - 1 / self._count)  # a plain mean at first
        self._average = decay * self._average + (1 - decay) * level
        recent = median(self._recent)
        if self._count > FIRST and self._average > 0 and recent > self._factor * self._average:
            return f"has risen to {recent:.4g}, more than {self._factor:g} times its long average of {self._average:.4g},"
        return None
