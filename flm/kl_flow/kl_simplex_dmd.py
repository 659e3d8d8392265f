"""Simplex-DMD of a KL-flow: distribution matching (arXiv 2609.40235) along the KL geodesic instead of the Gaussian path.

The student reads x_a of a text and gives probabilities delta, which serve as a clean sample and are noised again. Training
minimises the reverse KL between the distributions of noised samples and noised data, at all levels b > a of the clock. The
scores in its gradient follow from the mean of the noise (`flm.kl_flow.noise_matching`): under the posterior of the frozen
teacher, and under that of an auxiliary denoiser, the "fake", which learns the mean noise in the student's states. The fake has
the teacher's form, so that it can start at its weights. This form is exact where delta is nearly a token, as in a trained
student, and for mixtures of two tokens. For mixtures of more, the fake finds the nearest of its form.
B batch, L length, V vocabulary.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from flm.algos.algorithm import Algorithm, Backbone, Batch, Loss
from flm.algos.losses import summed
from flm.algos.teacher import InTurns, denoiser_on
from flm.draws import Draws, mix_seed
from flm.kl_flow.geodesic import Geodesic, GeodesicClock
from flm.kl_flow.geodesic_sampler import noised
from flm.kl_flow.geodesic_state import Moved, Noise, State, corrupt, embed
from flm.kl_flow.kl_flow import FeatureName, GeodesicDenoiser, check_path
from flm.kl_flow.noise_matching import geodesic_matching, in_chunks, noise_divergence
from flm.models.attention import DocumentMask, document_mask
from flm.posterior import TokenPosterior
from flm.ranges import Count, OpenShare, Positive
from flm.samplers.canvas import Canvas
from flm.samplers.flow import Moment, OnStep, check_steps
from flm.samplers.policy import Policy, Shaping


class Student:
    """delta(x, tau), conditioned on the clock time of the state. It is not a denoiser, so no other model can learn from it."""

    def __init__(self, reader: GeodesicDenoiser):
        self.reader, self.path, self.clock, self.dtype = reader, reader.path, reader.clock, reader.dtype

    def __call__(self, state: State, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
        return self.reader(state, tau)


class FreshPointSampler(Policy):
    """N evaluations. Each prediction is a clean point that is noised anew for the next; the last one's arg-max is the sample.

    Given positions are clean at every evaluation.
    """

    @torch.no_grad()
    def __call__(
        self, denoiser: Student, canvas: Canvas, steps: int, generator: torch.Generator, on_step: OnStep = None
    ) -> Tensor:
        check_steps(steps)
        count, device = len(canvas.tokens), canvas.tokens.device
        grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=device)
        times, taus, shaping = denoiser.clock.time(grid), grid.tolist(), Shaping(self, canvas)
        state = noised(canvas, canvas.tokens, times[0], denoiser, generator)
        for k in range(steps):
            posterior = shaping(denoiser(state, grid[k].float().expand(count)), taus[k])
            shaping.guessed(posterior)
            if on_step is not None:
                on_step(Moment(k, steps, taus[k], posterior, canvas))
            if k < steps - 1:
                seed = int(torch.randint(2**62, (), generator=generator, device=device).item())
                seeds = [mix_seed(seed, row) for row in range(count)]
                noise = Noise(seeds, canvas.tokens.shape[1], denoiser.path, device, denoiser.dtype)
                t = times[k + 1].expand(count)
                state = state.at(Moved(noise, posterior, denoiser.path.signal(t)), t)
        return canvas.fill(posterior.argmax())


@dataclass(frozen=True)
class Draw:
    """A prediction of the student, and the state that it was noised to.

    Attributes:
        student: delta, with gradients; the rest has none.
        start, level: (B,) clock times of x_a and of the noised state.
        noise: log E of the noised state.
        state: x, the noised state.
    """

    student: TokenPosterior
    start: Tensor
    level: Tensor
    noise: Noise
    state: State


class KLSimplexDMD(InTurns):
    """Trains the student and its fake.

    Args:
        backbone: called as backbone(vocab_size=V) for the student and backbone(vocab_size=V, two_times=True) for the fake.
        vocab_size: V.
        length: L.
        teacher: a trained KLFlow of the same backbone.
        student_every: the student learns at every so many optimiser steps, the first included; the fake at the others.
        max_t, smoothing, concentration, features: as in KLFlow, and the teacher's.
    """

    samplers = {"": FreshPointSampler}

    def __init__(
        self,
        backbone: Backbone,
        vocab_size: Count,
        length: Count,
        teacher: Algorithm | None = None,
        student_every: Annotated[int, Ge(2)] = 5,
        max_t: OpenShare | None = None,
        smoothing: OpenShare = 0.01,
        concentration: Positive = 1.0,
        features: FeatureName = "simplex",
    ):
        super().__init__(vocab_size, length, teacher=teacher)
        self.student_every, self.features = student_every, features
        self.path = Geodesic.of(vocab_size, max_t, smoothing, concentration)
        self.clock = GeodesicClock(self.path.max_t)
        if teacher is not None:
            self.check_teacher("teacher", GeodesicDenoiser, "algo=kl_flow")
            check_path(teacher, self.path, features)
        self.backbone = backbone(vocab_size=vocab_size)
        self.fake = backbone(vocab_size=vocab_size, two_times=True)
        self.start_at_teacher(teacher)

    def denoiser(self, mask: DocumentMask | None = None) -> Student:
        return Student(GeodesicDenoiser(self.backbone, self.path, self.clock, self.features, mask))

    def student_loss(self, batch: Batch, draws: Draws) -> Loss:
        drawn, mask = self._drawn(batch, draws), document_mask(batch.documents)
        with torch.no_grad():
            real = denoiser_on(self.teacher("teacher"), mask)(drawn.state, drawn.level.float())
            fake = self._fake(drawn, mask)
        scale, signal = self.path.concentration * self.vocab_size, self.path.signal(drawn.state.t)
        total, about = geodesic_matching(drawn.student, real, fake, drawn.noise, signal, batch.weight, scale)
        loss = summed(total, about["score_gap"], batch.weight, drawn.start)
        loss.metrics = {name: ((values * batch.weight).sum(), loss.count) for name, values in about.items()}
        return loss

    def fake_loss(self, batch: Batch, draws: Draws) -> Loss:
        with torch.no_grad():
            drawn = self._drawn(batch, draws)
        fake, signal = self._fake(drawn, document_mask(batch.documents)), self.path.signal(drawn.state.t)
        total, nats = in_chunks(
            fake, drawn.noise, drawn.student, signal, batch.weight, lambda _, x, n, a: noise_divergence(x, n, a)
        )
        return summed(total, nats, batch.weight, drawn.level, metric="fake_nats_per_token")

    def _fake(self, drawn: Draw, mask: DocumentMask | None) -> TokenPosterior:
        options = {} if mask is None else {"mask": mask}
        view = embed(drawn.state, self.fake.input_table, self.features, self.path)
        return self.fake(view, drawn.level.float(), drawn.start.float(), **options)

    def _drawn(self, batch: Batch, draws: Draws) -> Draw:
        count, given = len(batch.tokens), batch.weight == 0
        start = draws.stratified(count)
        level = start + (1 - start) * draws.stratified(count)
        denoiser = self.denoiser(document_mask(batch.documents))
        s, t = (self.clock.time(tau) for tau in (start, level))
        known = corrupt(batch.tokens, s, self.path, draws.rows.seeds(count), given, denoiser.dtype)
        student = denoiser(known, start.float())
        noise = Noise(draws.rows.seeds(count), batch.tokens.shape[1], self.path, batch.tokens.device, denoiser.dtype)
        state = State(Moved(noise, student.detach(), self.path.signal(t)), t, batch.tokens, given)
        return Draw(student, start, level, noise, state)
