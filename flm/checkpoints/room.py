"""How large a model may be that a file describes: no larger than the file's own tensors fill.

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
    """
    Attributes:
        tensors: of the file.
        elements: in them; those of tensors that share memory are counted once.
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
        """`network`, which first is built without memory for its weights; ValueError where it would be too large."""

        def made(*args: Any, **given: Any) -> nn.Module:
            try:
                with torch.device("meta"), self.counted():
                    network(*args, **given)
            except (NotImplementedError, RuntimeError):
                pass  # not every class can be built without memory; what else is wrong with it shows below
            return network(*args, **given)

        return made

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Modules that this thread builds inside raise ValueError as soon as they outgrow the room."""
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
