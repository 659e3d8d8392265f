"""Algorithms that learn from trained models."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm


class Distillation(Algorithm):
    """Base of algorithms with frozen teachers, which are neither trained nor saved with the student.

    A teacher is another Algorithm, handed to the constructor. The config names its checkpoint under the same key with
    `_path` behind it: `algo.teacher_path` becomes `teacher`. A student rebuilt from its own checkpoint gets None: it can
    sample, not train.
    """

    def __init__(self, vocab_size: int, length: int, **teachers: Algorithm | None):
        super().__init__(vocab_size, length)
        for name, teacher in teachers.items():
            if teacher is None:
                continue
            if teacher.vocab_size != vocab_size:
                raise ValueError(
                    f"algo.{name}_path: a checkpoint of another vocabulary ({teacher.vocab_size} tokens, the data's "
                    f"tokenizer has {vocab_size}): choose the data and tokenizer it was trained on"
                )
            teacher.requires_grad_(False).eval()
        # in a dict of its own, not registered: no parameter of a teacher is optimised, averaged or saved
        self._teachers = teachers

    def teacher(self, name: str) -> Any:
        """A teacher by its constructor argument; None if it was not given."""
        return self._teachers[name]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Distillation":
        for teacher in self._teachers.values():
            if teacher is not None:
                teacher._apply(fn)
        return super()._apply(fn, recurse)

    def averaged(self, module_name: str) -> Callable[..., Any]:
        """A submodule that runs on the averaged weights."""
        if self.averaged_weights is None:
            raise ValueError("algo.averaged_targets=true needs an average of the weights: set training.ema")
        prefix = module_name + "."
        weights = {k.removeprefix(prefix): v for k, v in self.averaged_weights.items() if k.startswith(prefix)}
        module = self.get_submodule(module_name)
        return lambda *args: torch.func.functional_call(module, weights, args)


def copy_weights(source: nn.Module, target: nn.Module, key: str) -> None:
    """Starts `target` at the weights of `source`, by name; what only the target has (a second time embedding) stays.

    Raises:
        ValueError: anything else differs; `key` is the config key to name.
    """
    weights = source.state_dict()
    own = target.state_dict()
    odd = [name for name in weights if name not in own or own[name].shape != weights[name].shape]
    odd += [name for name in own if name not in weights and not name.startswith("second_time_embedding.")]
    if odd:
        raise ValueError(
            f"{key}: the teacher's network is not of the student's shape ({odd[0]} and {len(odd) - 1} more differ): give the "
            "student the model= of the teacher, or set algo.initialize_student_from_teacher=false"
        )
    target.load_state_dict(weights, strict=False)

