"""Simplex-DMD: a student of few evaluations by distribution matching on the simplex (arXiv 2609.40235).

The student reads x_s = (1 - s) n + s onehot(y) and gives probabilities delta, which serve as a clean sample. They are noised
again,

    x_t = t delta + (1 - t) eps,    tau_s ~ U(0, 1), tau_t ~ U(tau_s, 1) on the clock,

and the distribution of x_t should match that of noised data, in reverse KL at each (s, t). With Tweedie's score
(t E[clean | x] - x) / (1 - t)^2 of both distributions, the gradient is

    E[ t^2 / (1 - t)^2  sum_k (F_k - D_k) d delta_k ].

D is the frozen teacher, p(token | x_t) of the data. F(x_t, t, s) ~ E[delta | x_t] is an auxiliary denoiser, the "fake", which
learns the student's distribution by cross-entropy with delta. All three start at the teacher's weights and share its frozen
input table: one view of x_t serves teacher and fake, and the table in delta's expected row needs no gradient.

The networks learn in turn, under one optimiser: the student at every `student_every`-th step, the fake at the others. Each has
its own Adam moments and clipping, and does not move between its turns (`Algorithm.resting`). The running average of the weights
moves at every step, so it spans `student_every` times fewer updates of the student than its decay suggests.

If the teacher reads evidence (`flm.paths.evidence`), the fake reads that of x_t, and the student that of x_s toward the end of
the clock, as a flow map does. At s = 0 the plain evidence would not show the student its noise.

A student that ignores its noise is a stationary point (the gradient by the gain of the noise is 0). This is why it starts at
the teacher, and why `student_entropy_nats` is logged. B batch, L length, V vocabulary.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Backbone, Batch, Loss
from flm.algos.evidence_map import EvidenceMap
from flm.algos.flm import SingleTimeDenoiser, log_frequencies
from flm.algos.losses import summed
from flm.algos.teacher import InTurns, denoiser_on
from flm.draws import Draws
from flm.models.attention import DocumentMask, document_mask
from flm.outputs import Output
from flm.paths.clock import DecodingErrorClock
from flm.paths.evidence import FullState, Held, LocalEvidence, Pinned, Stepped, embed_evidence, kept, noised
from flm.paths.gaussian import Given, OneHot, State, Table, combine, corrupt, noise_for
from flm.posterior import TokenPosterior
from flm.ranges import Count
from flm.samplers.fresh_noise import FlowMapSampler
from flm.vocabulary_losses import cross_entropy, of_logits

# Least value of 1 - t in the weight, which would be infinite at t = 1; on the decoding-error clock 1 - t is always larger.
NEARLY_CLEAN = 1e-2


class Student:
    """delta(x, tau), conditioned on the clock time of the state. It is not a denoiser, so no other model can learn from it."""

    def __init__(self, backbone: nn.Module, clock: nn.Module, mask: DocumentMask | None = None, clean_given: bool = False):
        self.backbone, self.clock, self.clean_given = backbone, clock, clean_given
        self.options = {} if mask is None else {"mask": mask}

    @property
    def tables(self) -> tuple[Table, ...]:
        return (self.backbone.input_table,)

    def __call__(self, state: State, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
        return self.backbone(state.views[0], tau, **self.options)


class EvidenceStudent(Student):
    """A student that reads the evidence of x toward the end of the clock and adds it to its logits."""

    def __init__(
        self,
        backbone: nn.Module,
        clock: nn.Module,
        log_prior: Tensor,
        mask: DocumentMask | None = None,
        clean_given: bool = False,
    ):
        super().__init__(backbone, clock, mask, clean_given)
        self.reader = EvidenceMap(backbone, clock, log_prior)

    @property
    def tables(self) -> tuple[Table, ...]:
        return (OneHot(self.backbone.input_table),)

    def __call__(self, state: State, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
        x = state.views[0]
        clean = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if state.clean is None else state.clean
        return self.ask(Held(x.flatten(0, 1)), clean, tau)

    def ask(self, x: FullState, clean: Tensor, tau: Tensor) -> TokenPosterior:
        """delta for a state that is read chunk by chunk; clean (B, L): which positions are at t = 1."""
        evidence = self.reader.evidence(x, clean, tau, torch.ones_like(tau))
        return replace(self.backbone(self.reader.read(evidence, clean.shape[1]), tau, **self.options), offset=evidence)


@dataclass(frozen=True)
class Draw:
    """A prediction of the student, and the state x_t that it was noised to.

    Attributes:
        student: delta, with gradients; the rest has none.
        start, level: (B,) clock times of s and t.
        t: (B, L) physical time of each position, 1 where it is clean.
        view: (B, L, D), input of the fake for x_t.
        real: input of the teacher: a view of x_t as a state, or x_t itself.
        evidence: of x_t; None if views are read.
    """

    student: TokenPosterior
    start: Tensor
    level: Tensor
    t: Tensor
    view: Tensor
    real: State | FullState
    evidence: LocalEvidence | None = None


class SimplexDMD(InTurns):
    """Trains the student and its fake.

    Args:
        backbone: called as backbone(vocab_size=V) for the student and backbone(vocab_size=V, two_times=True) for the fake.
        vocab_size: V.
        length: L.
        teacher: a trained FLM of the same backbone.
        student_every: the student learns at every so many optimiser steps, the first included; the fake at the others.
        clock: the teacher's; None: the decoding-error clock.
        clean_given: as in `FLM`, and the teacher's.
        reads: as in `FLM`, and the teacher's.
    """

    samplers = {"": partial(FlowMapSampler, gamma=1.0)}  # with fresh noise before each further evaluation, as published

    def __init__(
        self,
        backbone: Backbone,
        vocab_size: Count,
        length: Count,
        teacher: Algorithm | None = None,
        student_every: Annotated[int, Ge(2)] = 5,
        clock: nn.Module | None = None,
        clean_given: bool = False,
        reads: Literal["view", "evidence"] = "view",
    ):
        super().__init__(vocab_size, length, teacher=teacher)
        self.student_every, self.clean_given, self.reads = student_every, clean_given, reads
        self.clock = DecodingErrorClock(vocab_size) if clock is None else clock
        self.check_teacher("teacher", SingleTimeDenoiser, "algo=flm", self.clock, clean_given, reads)
        self.backbone = backbone(vocab_size=vocab_size)
        self.fake = backbone(vocab_size=vocab_size, two_times=True)
        self.start_at_teacher(teacher)
        if reads == "evidence":  # uniform until `know_frequencies`
            self.register_buffer("log_prior", torch.zeros(vocab_size))

    def know_frequencies(self, token_counts: Tensor) -> None:
        if self.reads == "evidence":
            teacher = self.teacher("teacher")  # with its prior, all three start as the same function of the evidence
            self.log_prior.copy_(log_frequencies(token_counts) if teacher is None else teacher.log_prior)

    def denoiser(self, mask: DocumentMask | None = None) -> Student:
        if self.reads == "evidence":
            return EvidenceStudent(self.backbone, self.clock, self.log_prior, mask, self.clean_given)
        return Student(self.backbone, self.clock, mask, self.clean_given)

    def student_loss(self, batch: Batch, draws: Draws) -> Loss:
        drawn, mask = self._drawn(batch, draws), document_mask(batch.documents)
        with torch.no_grad():
            teacher, tau = denoiser_on(self.teacher("teacher"), mask), drawn.level.float()
            real = teacher(drawn.real, tau) if drawn.evidence is None else teacher.predict(drawn.real, drawn.t, tau)
            fake = self._fake(drawn, mask)
        t = self.clock.time(drawn.level)
        signal = (t / (1 - t).clamp_min(NEARLY_CLEAN)).square()[:, None].to(batch.weight)
        total, about = distribution_matching(drawn.student, real, fake, batch.weight * signal)
        loss = summed(total, about["score_gap"] * signal, batch.weight, drawn.start)
        loss.metrics = {name: ((values * batch.weight).sum(), loss.count) for name, values in about.items()}
        loss.metrics["score_gap"] = loss.sums.sum(), loss.count
        return loss

    def fake_loss(self, batch: Batch, draws: Draws) -> Loss:
        with torch.no_grad():
            drawn = self._drawn(batch, draws)
        total, nats = cross_entropy(self._fake(drawn, document_mask(batch.documents)), drawn.student, batch.weight)
        return summed(total, nats, batch.weight, drawn.level, metric="fake_nats_per_token")

    def _fake(self, drawn: Draw, mask: DocumentMask | None) -> TokenPosterior:
        options = {} if mask is None else {"mask": mask}
        found = self.fake(drawn.view, drawn.level.float(), drawn.start.float(), **options)
        return found if drawn.evidence is None else replace(found, offset=drawn.evidence)

    def _drawn(self, batch: Batch, draws: Draws) -> Draw:
        count = len(batch.tokens)
        start = draws.stratified(count)
        level = start + (1 - start) * draws.stratified(count)
        prepare = self._from_evidence if self.reads == "evidence" else self._from_views
        return prepare(batch, draws, start, level)

    def _from_views(self, batch: Batch, draws: Draws, start: Tensor, level: Tensor) -> Draw:
        student = self.denoiser(document_mask(batch.documents))
        tables, given = student.tables, Given(batch.tokens, batch.given, self.clean_given)
        law = noise_for(tables)
        s, t = (self.clock.time(tau).float() for tau in (start, level))
        posterior = student(given.seen(corrupt(batch.tokens, s, tables, draws.rows, law), tables), start.float())
        x = combine((t, given.point(posterior, tables)), (1 - t, law.sample(*batch.tokens.shape, draws.rows)))
        shown = given.seen(x, tables)
        return Draw(posterior, start, level, t[:, None].expand(batch.tokens.shape), shown.views[0], shown)

    def _from_evidence(self, batch: Batch, draws: Draws, start: Tensor, level: Tensor) -> Draw:
        """As `_from_views`, from whole states, which are computed chunk by chunk."""
        student, known = self.denoiser(document_mask(batch.documents)), batch.given
        clean = known if self.clean_given else torch.zeros_like(known)
        s, t = (self.clock.time(tau)[:, None].expand(clean.shape).masked_fill(clean, 1.0) for tau in (start, level))
        x = noised(batch.tokens, s, draws.rows.seeds(len(start)), self.log_prior)
        posterior = student.ask(x, clean, start.float())
        noise = noised(batch.tokens, torch.zeros_like(t), draws.rows.seeds(len(start)), self.log_prior)
        point = Pinned(posterior.detach(), batch.tokens.reshape(-1), known.reshape(-1))
        with torch.no_grad():
            x = kept(Stepped(noise, point, t.reshape(-1)), t.numel(), self.log_prior)
            evidence = LocalEvidence(x, t.reshape(-1), self.log_prior)
            view = embed_evidence(evidence, self.fake.input_table).view(*t.shape, -1)
        return Draw(posterior, start, level, t, view, x, evidence)


def distribution_matching(
    student: TokenPosterior, real: Output, fake: Output, weight: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """<F - D, delta> at every token, with F and D constant. Its gradient is that of reverse KL; its value has no meaning.

    Args:
        real: D.
        fake: F.
        weight: (B, L), constant, including t^2 / (1 - t)^2.

    Returns:
        The weighted sum, a differentiable scalar; and for each token (B, L), detached: "score_gap", |F - D|^2;
        "student_entropy_nats"; and "fake_nats_per_token", the cross-entropy of F with delta.
    """
    about = {
        name: torch.zeros(weight.numel(), dtype=torch.promote_types(student.hidden.dtype, torch.float32), device=weight.device)
        for name in ("score_gap", "student_entropy_nats", "fake_nats_per_token")
    }

    def value_and_slope(part: slice, logits: Tensor, with_slope: bool) -> tuple[Tensor, Tensor | None]:
        p, own = logits.softmax(-1), fake.chunk(part).to(logits.dtype)
        about["student_entropy_nats"][part] = torch.special.entr(p).sum(-1)
        # 1e-30 where fp32 would underflow
        about["fake_nats_per_token"][part] = -torch.linalg.vecdot(p, own.clamp_min(1e-30).log())
        gap = own.sub_(real.chunk(part))
        about["score_gap"][part] = torch.linalg.vecdot(gap, gap)
        value = torch.linalg.vecdot(gap, p)
        return value, gap.sub_(value[:, None]).mul_(p) if with_slope else None

    total, _ = of_logits(student, value_and_slope, weight)
    return total, {name: values.view(weight.shape).detach() for name, values in about.items()}
