"""Duo distilled to few steps: discrete consistency distillation (arXiv 2506.10892, algorithm 1).

With the noise of the underlying Gaussian diffusion held fixed, a sequence has one deterministic trajectory of discrete
states. The student at a noisier state of it is trained to predict what the target predicts at a cleaner one, a step of the
clock ahead. Training goes in rounds: after each the student becomes the target and the step doubles.

B batch, L length, D width, V vocabulary.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Backbone, Batch, Loss
from flm.algos.losses import summed
from flm.algos.teacher import Distillation, check_length, copy_weights, missing_teacher
from flm.draws import Draws
from flm.duo.duo import gamma_range
from flm.duo.gaussian_relaxation import ArgmaxTransform, coupled_states
from flm.duo.uniform_state import UniformState, predict, schedule_or_default
from flm.outputs import Output
from flm.paths.mixture import Schedule
from flm.posterior import TokenPosterior
from flm.ranges import Count, one_of
from flm.vocabulary_losses import of_logits

TRAJECTORY_KAPPAS = (0.238, 0.9987)  # in the middle and at the clean end of the published gamma for GPT-2's vocabulary
DIVERGENCES = ("reverse", "forward")
UNTAUGHT = -1


class DuoDistill(UniformState, Distillation):
    """Trains a student of a few steps.

    Args:
        backbone: as for Duo.
        vocab_size: V.
        length: L.
        teacher: a trained Duo, or a student of one, of the same backbone: both networks start as it.
        schedule: as for Duo; the teacher's.
        first_steps: the first round's step is this part of the clock, 1 / first_steps; each round's is twice as long, the
            whole clock at most.
        round_steps: optimiser steps of a round.
        averaged_targets: the student becomes the target with its averaged weights rather than the last step's.
        divergence: "reverse", KL(student | target), as published, or "forward", KL(target | student).
        gamma_min, gamma_max: log noise-to-signal ratio at the clean and the noisy end of the clock, on which it is linear;
            None: so that kappa is 0.9987 at the clean end and 0.238 in the middle.

    Attributes:
        target_round: () int64 buffer, the round whose target `target` is; -1 before a teacher was given.
    """

    required_teachers = ("teacher",)
    validation_metric = "consistency_kl_nats"
    validation_says = "from the teacher: not a likelihood"
    target_round: Tensor

    def __init__(
        self,
        backbone: Backbone,
        vocab_size: Count,
        length: Count,
        teacher: Algorithm | None = None,
        schedule: Schedule | None = None,
        first_steps: Count = 512,
        round_steps: Count = 10_000,
        averaged_targets: bool = True,
        divergence: Annotated[str, one_of(DIVERGENCES)] = "reverse",
        gamma_min: float | None = None,
        gamma_max: float | None = None,
    ):
        super().__init__(vocab_size, length, teacher=teacher)
        self.schedule = schedule_or_default(schedule)
        self.backbone = backbone(vocab_size=vocab_size)
        self.target = backbone(vocab_size=vocab_size).requires_grad_(False).eval()
        self.register_buffer("target_round", torch.tensor(UNTAUGHT if teacher is None else 0))
        if teacher is not None:
            check_uniform_state(teacher, self.schedule, length, "algo.teacher_path")
            for network in (self.backbone, self.target):
                copy_weights(teacher.backbone, network, length, "algo.teacher_path")
            self._teachers = {"teacher": None}  # all it knows is in the target
        self.first_steps, self.round_steps = first_steps, round_steps
        self.averaged_targets, self.divergence = averaged_targets, divergence
        self.transform = ArgmaxTransform(vocab_size)
        self.gamma_min, self.gamma_max = gamma_range(self.transform, gamma_min, gamma_max, TRAJECTORY_KAPPAS)

    def train(self, mode: bool = True) -> "DuoDistill":
        super().train(mode)
        self.target.eval()
        return self

    def check_ready(self) -> None:
        if int(self.target_round) == UNTAUGHT:
            raise ValueError(missing_teacher("teacher"))

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Nats of the tokens that count, of the divergence at one place of each sequence's trajectory."""
        number, begins = divmod(draws.step, self.round_steps)
        if begins == 0:  # only here is the buffer read: it makes the CPU wait for the device
            self._begin_round(number)
        return self._consistency(batch, draws, number)

    def validation_loss(self, batch: Batch, draws: Draws) -> Loss:
        """The same on the averaged weights against this round's target."""
        return self._consistency(batch, draws, max(0, int(self.target_round)))

    def step_of_round(self, number: int) -> float:
        """Length of a step of the clock, in (0, 1]."""
        return min(1.0, 2.0**number / self.first_steps)

    @torch.no_grad()
    def _begin_round(self, number: int) -> None:
        """The student becomes the target, once: a micro-batch that comes second, or after a resume, changes nothing."""
        self.check_ready()
        if int(self.target_round) >= number:
            return
        weights = self.averaged("backbone").weights if self.averaged_targets else dict(self.backbone.named_parameters())
        for name, parameter in self.target.named_parameters():
            parameter.copy_(weights[name])
        for name, buffer in self.target.named_buffers():
            buffer.copy_(self.backbone.get_buffer(name))
        self.target_round.fill_(number)

    def _consistency(self, batch: Batch, draws: Draws, number: int) -> Loss:
        step = self.step_of_round(number)
        clock = draws.stratified(len(batch.tokens)) * (1 - step)
        noisier, cleaner = (
            torch.exp(-(self.gamma_max - (self.gamma_max - self.gamma_min) * c) / 2) for c in (clock, clock + step)
        )
        states = coupled_states(batch.tokens, noisier, cleaner, self.vocab_size, draws.rows)
        states = tuple(torch.where(batch.given, batch.tokens, state) for state in states)
        kappa = self.transform.kappa(noisier)
        with torch.no_grad():
            target = self._read(self.target, states[1], self.transform.kappa(cleaner), batch)
        posterior = self._read(self.backbone, states[0], kappa, batch)
        total, nats = divergence(posterior, target, batch.weight, self.divergence == "reverse")
        loss = summed(total, nats, batch.weight, self.schedule.inverse(kappa))
        one = torch.ones((), device=kappa.device)
        loss.metrics["clock_step"] = step * one, one
        return loss

    def _read(self, network: nn.Module, state: Tensor, kappa: Tensor, batch: Batch) -> TokenPosterior:
        return predict(network, F.embedding(state, network.input_table), kappa, batch.documents)


def divergence(posterior: TokenPosterior, target: Output, weight: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """KL(posterior | target) at every token if reverse, else KL(target | posterior), in nats; the target is constant.

    Returns:
        The sum weighted by weight (B, L), a differentiable scalar, and each token's divergence (B, L), detached.
    """

    def value_and_slope(part: slice, logits: Tensor, with_slope: bool) -> tuple[Tensor, Tensor | None]:
        log_p, q = logits.log_softmax(-1), target.chunk(part).to(logits.dtype)
        # a probability that fp32 cannot hold counts as 1e-30
        ratio, p = log_p - q.clamp_min(1e-30).log(), log_p.exp()
        if reverse:
            value = torch.linalg.vecdot(p, ratio)
            return value, ratio.sub_(value[:, None]).mul_(p) if with_slope else None
        return -torch.linalg.vecdot(q, ratio), p.sub_(q) if with_slope else None

    return of_logits(posterior, value_and_slope, weight)


def check_uniform_state(teacher: Algorithm, schedule: Schedule, length: int, key: str) -> None:
    """Raises ValueError unless the teacher reads uniform-state tokens on this schedule; `key` is the config key to name."""
    if not isinstance(teacher, UniformState):
        raise ValueError(f"{key}: needs a checkpoint of algo=duo or duo_distill, not of {type(teacher).__name__}")
    check_length(teacher, length, key)
    t = torch.tensor([0.0, 0.3, 0.8], dtype=torch.float64)
    if not torch.allclose(teacher.schedule.kappa(t), schedule.kappa(t)):
        raise ValueError(f"{key}: trained on another schedule: give algo.schedule the one it was trained on")
