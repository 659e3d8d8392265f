"""A limit on the model that a file describes: not much larger than the file's own tensors.

A description is a few numbers, and a few numbers may ask for all memory or for a build that never ends. While a model is
built, every parameter, buffer and module that it registers is counted, whatever its classes.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

# Beyond what the file holds: tables that a model computes, layers without weights, a second name for tied weights.
_PARTS_PER_TENSOR, _SPARE_PARTS = 16, 1000
_TIMES_ELEMENTS, _SPARE_ELEMENTS = 2, 1 << 26


@dataclass(frozen=True)
class Room:
    """The size of a file's weights.

    Attributes:
        tensors: their number.
        elements: in all of them; tensors that share memory are counted once.
    """

    tensors: int
    elements: int

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> "Room":
        held: dict[int, int] = {}
        for tensor in state.values():
            storage = tensor.untyped_storage()
            elements = storage.nbytes() // tensor.element_size()
            held[storage.data_ptr()] = max(elements, held.get(storage.data_ptr(), 0))
        return cls(len(state), sum(held.values()))

    def checked(self, network: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        """`network`, built once without memory for its weights before it is built; ValueError if it would be too large."""

        def made(*args: Any, **given: Any) -> nn.Module:
            try:
                with torch.device("meta"), self.counted():
                    network(*args, **given)
            except (NotImplementedError, RuntimeError):
                pass  # not every class can be built without memory; any other fault shows below
            return network(*args, **given)

        return made

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Inside the block, modules that this thread builds raise ValueError as soon as they outgrow the room.

        Elements are counted only where they take no memory, in the first build of `checked`.
        """
        parts = elements = 0
        most_parts = _PARTS_PER_TENSOR * self.tensors + _SPARE_PARTS
        most_elements = _TIMES_ELEMENTS * self.elements + _SPARE_ELEMENTS
        builder = threading.get_ident()

        def count(owner: nn.Module, name: str, part: nn.Module | Tensor | None) -> None:
            nonlocal parts, elements
            if threading.get_ident() != builder:
                return
            parts += 1
            elements += part.numel() if isinstance(part, Tensor) and part.is_meta else 0
            if parts > most_parts or elements > most_elements:
                raise ValueError(
                    f"the described model does not fit the file's weights: it is far larger than the {self.tensors:,} tensors "
                    f"with {self.elements:,} elements in it (counted up to {type(owner).__name__}.{name})"
                )

        register = (
            hooks.register_module_parameter_registration_hook,
            hooks.register_module_buffer_registration_hook,
            hooks.register_module_module_registration_hook,
        )
        handles = [add(count) for add in register]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
