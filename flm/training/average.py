"""The running average of the weights that validation and sampling use."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flm.training.sharding import like, local


class Average:
    """Exponential moving average of a module's trainable parameters, by name, in fp32.

    Buffers and frozen parameters are not averaged: they keep the module's own values.

    Args:
        module: whose parameters that require gradients are averaged; the average starts at their values.
        decay: in (0, 1). Update n = 1, 2, ... uses min(decay, (1 + n) / (10 + n)), so that the initial weights fade quickly.

    Attributes:
        weights: name to fp32 tensor.
        updates: number of updates so far.
        in_place: whether the module holds the average at this moment, inside `applied`.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.updates, self.in_place = decay, 0, False
        self.weights: dict[str, Tensor] = {
            name: parameter.detach().float().clone() for name, parameter in module.named_parameters() if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves the average towards the module's weights; called once after every optimiser step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        online = [local(parameter).float() for parameter in self._parameters(module)]
        torch._foreach_lerp_([local(weight) for weight in self.weights.values()], online, 1 - decay)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module holds the average inside the block, and after it its own weights again, bit for bit."""
        parameters = self._parameters(module)
        with torch.no_grad():
            online = [local(parameter).clone() for parameter in parameters]
            _copy(self.weights.values(), parameters)
        self.in_place = True
        try:
            yield
        finally:
            with torch.no_grad():
                _copy(online, parameters)
            self.in_place = False

    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Continues a stored average.

        Raises:
            ValueError: names or shapes are not those of this average.
        """
        shapes = {name: tensor.shape for name, tensor in self.weights.items()}
        if {name: tensor.shape for name, tensor in weights.items()} != shapes:
            raise ValueError("the average in the checkpoint is of other parameters than this model's trainable ones")
        self.updates = updates
        for name, tensor in self.weights.items():
            _copy([like(weights[name], tensor)], [tensor])

    def split_like(self, module: nn.Module) -> None:
        """Splits each average like its parameter, of which this process may hold only a part."""
        named = dict(module.named_parameters())
        for name, weight in self.weights.items():
            self.weights[name] = like(weight, named[name].detach().float())  # whatever the parameters' precision

    def _parameters(self, module: nn.Module) -> list[nn.Parameter]:
        named = dict(module.named_parameters())
        parameters = [named[name] for name in self.weights]
        # the module may have moved to a device since the last update
        for name, parameter in zip(self.weights, parameters, strict=True):
            if self.weights[name].device != parameter.device:
                self.weights[name] = self.weights[name].to(parameter.device)
        return parameters


def _copy(sources: Iterable[Tensor], targets: Iterable[Tensor]) -> None:
    # copy_, not .data: it raises the tensor's version, which caches of derived values check
    for source, target in zip(sources, targets, strict=True):
        local(target).copy_(local(source))
