"""Algorithms that learn from trained models."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Batch, Loss
from flm.draws import Draws
from flm.models.attention import DocumentMask
from flm.posterior import TokenPosterior


class Distillation(Algorithm):
    """Base of algorithms with frozen teachers, which are neither trained nor saved with the student.

    A teacher is another Algorithm and an argument of the constructor. The config names its checkpoint under the same key
    followed by `_path`: `algo.teacher_path` is loaded and passed as `teacher`. A student that is rebuilt from its own
    checkpoint gets None: it can sample, not train.

    Attributes:
        required_teachers: constructor arguments of the teachers that the loss cannot do without.
    """

    required_teachers: tuple[str, ...] = ()

    def __init__(self, vocab_size: int, length: int, **teachers: Algorithm | None):
        super().__init__(vocab_size, length)
        for name, teacher in teachers.items():
            if teacher is None:
                continue
            check_vocabulary_size(teacher, vocab_size, f"algo.{name}_path")
            teacher.requires_grad_(False).eval()
        # a plain dict hides the teachers from nn.Module, so that none of their parameters is optimised, averaged or saved
        self._teachers = teachers

    def teacher(self, name: str) -> Any:
        """A teacher by its constructor argument; None if it was not given."""
        return self._teachers[name]

    def every_module(self) -> Iterator[nn.Module]:
        yield from super().every_module()
        for teacher in self._teachers.values():
            if teacher is not None:
                yield from teacher.every_module()

    def check_teacher(
        self,
        name: str,
        kind: type,
        wanted: str,
        clock: nn.Module | None = None,
        clean_given: bool | None = None,
        reads: str | None = None,
    ) -> None:
        """Checks that a teacher, if it was given, reads the same states as the student, of the same length and times.

        Args:
            kind: class that the teacher's denoiser must be of, conditioned on one time.
            wanted: the algorithms that have such a denoiser; follows "needs a checkpoint of" in the error.
            clock: the student's, which the teacher's must equal; None: not compared.
            clean_given: the student's, which the teacher's must equal; None: not compared.
            reads: the student's, which the teacher's must equal; None: the student can only learn from views.

        Raises:
            ValueError: it does not fit.
        """
        teacher, key = self._teachers[name], f"algo.{name}_path"
        if teacher is None:
            return
        try:
            denoiser = teacher.denoiser()
        except NotImplementedError:
            denoiser = None
        if not isinstance(denoiser, kind):
            raise ValueError(f"{key}: needs a checkpoint of {wanted}, not of {type(teacher).__name__}")
        if getattr(denoiser, "times", 1) != 1:
            raise ValueError(
                f"{key}: needs a checkpoint of {wanted}, told one time; {type(teacher).__name__} is told two, as a flow map is"
            )
        teacher_reads = getattr(teacher, "reads", "view")
        if reads is None and teacher_reads != "view":
            learns = "algo=fmlm learns from it, this algorithm does not"
            raise ValueError(f"{key}: trained with algo.reads={teacher_reads}: {learns}")
        if reads not in (None, teacher_reads):
            raise ValueError(f"{key}: trained with algo.reads={teacher_reads}: give the student the same")
        check_length(teacher, self.length, key)
        if clock is not None:
            tau = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
            theirs, ours = denoiser.clock.time(tau.to(_device(denoiser.clock))), clock.time(tau.to(_device(clock)))
            if not torch.allclose(theirs.cpu(), ours.cpu()):
                raise ValueError(f"{key}: trained on another clock: give algo.clock the one it was trained on")
        teacher_clean = getattr(denoiser, "clean_given", False)
        if clean_given is not None and teacher_clean != clean_given:
            raise ValueError(f"{key}: trained with algo.clean_given={str(teacher_clean).lower()}: give the student the same")

    def check_ready(self) -> None:
        for name in self.required_teachers:
            if self._teachers[name] is None:
                raise ValueError(missing_teacher(name))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Distillation":
        for teacher in self._teachers.values():
            if teacher is not None:
                teacher._apply(fn)
        return super()._apply(fn, recurse)

    def averaged(self, module_name: str) -> "AveragedBackbone":
        """A backbone of this algorithm on the averaged weights."""
        if self.averaged_weights is None:
            raise ValueError(
                "algo.averaged_targets=true needs a whole average of the weights on every process: set training.ema, and not "
                "strategy=fsdp2"
            )
        module, prefix = self.get_submodule(module_name), module_name + "."
        # the average follows the module to its device only at its first update
        weights = {
            name: self.averaged_weights[prefix + name].to(parameter)
            for name, parameter in module.named_parameters()
            if prefix + name in self.averaged_weights
        }
        return AveragedBackbone(module, weights)


class InTurns(Distillation):
    """Base of distillations by distribution matching: a student `backbone`, and a `fake` that learns the student's own law.

    The student learns at every `student_every`-th optimiser step, the first included; the fake learns at the others.
    """

    required_teachers = ("teacher",)
    validation_metric = "score_gap"
    validation_says = "between the student's law and the teacher's: not a likelihood"
    student_every: int
    backbone: nn.Module
    fake: nn.Module

    def start_at_teacher(self, teacher: Algorithm | None) -> None:
        """Copies the teacher's weights to student and fake and freezes their input tables: one view then serves all three."""
        for network in (self.backbone, self.fake):
            if teacher is not None:
                copy_weights(backbone_of(teacher, "algo.teacher_path"), network, self.length, "algo.teacher_path")
            network.input_table.requires_grad_(False)

    def student_loss(self, batch: Batch, draws: Draws) -> Loss:
        raise NotImplementedError

    def fake_loss(self, batch: Batch, draws: Draws) -> Loss:
        raise NotImplementedError

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        return self.student_loss(batch, draws) if self._is_students(draws.step) else self.fake_loss(batch, draws)

    def validation_loss(self, batch: Batch, draws: Draws) -> Loss:
        """The squared difference of the student's score and the teacher's, at the levels the student starts from."""
        return self.student_loss(batch, draws)

    def resting(self, step: int) -> Iterator[nn.Parameter]:
        other = self.fake if self._is_students(step) else self.backbone
        return (parameter for parameter in other.parameters() if parameter.requires_grad)

    def _is_students(self, step: int) -> bool:
        return step % self.student_every == 0


def _device(module: nn.Module) -> torch.device:
    return next(module.buffers(), torch.zeros(())).device


class AveragedBackbone:
    """A backbone called with other weights. It reads the state through its own input table."""

    def __init__(self, module: nn.Module, weights: Mapping[str, Tensor]):
        self.module, self.weights = module, dict(weights)

    @property
    def input_table(self) -> Tensor:
        return self.weights.get("input_table", self.module.input_table)

    def __call__(self, *args: Tensor, **options: Any) -> TokenPosterior:
        return torch.func.functional_call(self.module, self.weights, args, options)


def denoiser_on(teacher: Algorithm, mask: DocumentMask | None) -> Any:
    """A teacher's denoiser with attention under a mask; None: every position sees every other."""
    return teacher.denoiser() if mask is None else teacher.denoiser(mask)


def missing_teacher(name: str) -> str:
    """The error message where the teacher of this constructor argument is needed and not given."""
    return f"algo.{name}_path is not set: name the checkpoint that the student learns from"


def check_vocabulary_size(teacher: Algorithm, vocab_size: int, key: str) -> None:
    """Raises ValueError, naming the config key, unless the teacher has as many tokens as the student."""
    if teacher.vocab_size != vocab_size:
        raise ValueError(
            f"{key}: a checkpoint of another vocabulary ({teacher.vocab_size} tokens, the data's tokenizer has {vocab_size}): "
            "choose the data and tokenizer it was trained on"
        )


def check_length(teacher: Algorithm, length: int, key: str) -> None:
    """Raises ValueError, naming the config key, unless the teacher was trained on sequences of the student's length."""
    if teacher.length != length:
        raise ValueError(f"{key}: trained on sequences of {teacher.length}, not {length}: set model.length={teacher.length}")


def backbone_of(teacher: Algorithm, key: str) -> nn.Module:
    """The one network of a teacher; `key` is the config key to name.

    Raises:
        ValueError: it has no `backbone`.
    """
    if not isinstance(getattr(teacher, "backbone", None), nn.Module):
        raise ValueError(f"{key}: needs a checkpoint of algo=flm, not of {type(teacher).__name__}")
    return teacher.backbone


def copy_weights(source: nn.Module, target: nn.Module, length: int, key: str) -> None:
    """Copies the weights of `source` to `target` by name. A second time embedding, which only the target may have, stays.

    Raises:
        ValueError: the networks differ in anything else; `key` is the config key to name.
    """
    weights = source.state_dict()
    own = target.state_dict()
    odd = [name for name in weights if name not in own or own[name].shape != weights[name].shape]
    odd += [name for name in own if name not in weights and not name.startswith("second_time_embedding.")]
    if odd:
        raise ValueError(
            f"{key}: the teacher's network is not of the student's shape ({odd[0]} and {len(odd) - 1} more differ): give the "
            "student the model= of the teacher"
        )
    target.load_state_dict(weights, strict=False)
    check_same_function(source, target, length, key)


@torch.no_grad()
def check_same_function(source: nn.Module, target: nn.Module, length: int, key: str) -> None:
    """Raises ValueError unless both networks predict the same from the same state.

    Shapes do not show differences in heads, softcaps or time scale.
    """
    table = source.input_table
    view = torch.randn(1, length, table.shape[1], generator=torch.Generator().manual_seed(0)).to(table)
    tau = torch.full((1,), 0.4, device=table.device)
    predictions = []
    for network in (source, target):
        training = network.training
        output = network.eval()(view, tau)
        predictions.append(output.log_prob(torch.zeros(1, length, dtype=torch.long, device=table.device)))
        network.train(training)
    if not torch.allclose(*predictions, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"{key}: with the teacher's weights this model= predicts something else than it: num_heads, softcaps or "
            "time_scale differ; take the model= of the teacher"
        )
