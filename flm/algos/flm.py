"""FLM: flow matching on one-hot vectors from Gaussian noise, trained as a denoiser with cross-entropy.

Lee et al., "Flow Map Language Models", arXiv 2602.16813. The minimiser of the loss is the posterior p(token | x_t), which
gives the velocity (D - x) / (1 - t).
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Backbone, Batch, Loss
from flm.algos.gaussian_likelihood import GaussianLikelihood
from flm.algos.losses import token_loss
from flm.draws import Draws
from flm.models.attention import DocumentMask, document_mask
from flm.paths.clock import DecodingErrorClock, TimeLaw
from flm.paths.evidence import FullState, Held, LocalEvidence, embed_evidence, noised
from flm.paths.gaussian import Given, OneHot, State, Table, context_free_cross_entropy, corrupt
from flm.posterior import TokenPosterior
from flm.ranges import Count
from flm.samplers.solvers import FLOW_SOLVERS


class SingleTimeDenoiser:
    """D_tau(x): a backbone that reads one view of the state.

    Args:
        mask: as the backbone takes it; None: every position sees every other.
        clean_given: see `FLM`.

    Attributes:
        times: how many clock times the network is conditioned on.
    """

    times = 1

    def __init__(self, backbone: nn.Module, clock: nn.Module, mask: DocumentMask | None = None, clean_given: bool = False):
        self.backbone, self.clock, self.clean_given = backbone, clock, clean_given
        self.options = {} if mask is None else {"mask": mask}

    @property
    def tables(self) -> tuple[Table, ...]:
        return (self.backbone.input_table,)

    def __call__(self, state: State, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
        return self.backbone(state.views[0], tau, **self.options)


class EvidenceDenoiser(SingleTimeDenoiser):
    """D_tau(x): a backbone that reads each position's context-free posterior and adds the logits of it to its own.

    It is called with x itself, V numbers a position, which samplers then carry.

    Args:
        log_prior: (V,) log frequencies of tokens.
    """

    def __init__(
        self,
        backbone: nn.Module,
        clock: nn.Module,
        log_prior: Tensor,
        mask: DocumentMask | None = None,
        clean_given: bool = False,
    ):
        super().__init__(backbone, clock, mask, clean_given)
        self.log_prior = log_prior

    @property
    def tables(self) -> tuple[Table, ...]:
        return (OneHot(self.backbone.input_table),)

    def __call__(self, state: State, tau: Tensor, tau_to: Tensor | None = None) -> TokenPosterior:
        x = state.views[0]
        t = self.clock.time(tau.double())[:, None].expand(x.shape[:2])
        t = t if state.clean is None else t.masked_fill(state.clean, 1.0)
        return self.predict(Held(x.flatten(0, 1)), t, tau)

    def predict(self, state: FullState, t: Tensor, tau: Tensor) -> TokenPosterior:
        """The prediction for x. Each position has its physical time t (B, L); tau (B,) is the network's clock time."""
        evidence = LocalEvidence(state, t.reshape(-1), self.log_prior)
        view = embed_evidence(evidence, self.backbone.input_table).view(*t.shape, -1)
        return replace(self.backbone(view, tau, **self.options), offset=evidence)


class FLM(GaussianLikelihood, Algorithm):
    """The flow language model.

    Args:
        backbone: called as backbone(vocab_size=V); gives a module with `input_table` (V, D) that maps (view (B, L, D),
            tau (B,)) to a TokenPosterior.
        vocab_size: V.
        length: L.
        clock: maps tau to physical time; None for the decoding-error clock of the vocabulary.
        clean_given: whether given tokens are read without noise at all times. Then D is the posterior given the prompt, and
            the flow that of p(response | prompt). If false, given tokens are noised too, and the first steps of a sampler
            cannot see the prompt.
        reads: what the network sees of x_t. "view": x_t times its input table, D numbers a position, as published; little is
            left of x_t if V is larger than D (docs/clock.md). "evidence": the exact context-free posterior
            softmax(log pi + t x_t / (1 - t)^2) times that table. The same logits are added to the network's own, so that it
            starts as the context-free decoder and learns what the context adds. A sampler then carries x_t, V numbers a
            position.
        time_law: distribution of the clock times it trains at; None: uniform. Validation is always uniform.
    """

    samplers = FLOW_SOLVERS

    def __init__(
        self,
        backbone: Backbone,
        vocab_size: Count,
        length: Count,
        clock: nn.Module | None = None,
        clean_given: bool = False,
        reads: Literal["view", "evidence"] = "view",
        time_law: TimeLaw | None = None,
    ):
        super().__init__(vocab_size, length)
        self.clean_given, self.reads, self.time_law = clean_given, reads, time_law
        self.backbone = backbone(vocab_size=vocab_size)
        self.clock = DecodingErrorClock(vocab_size) if clock is None else clock
        if reads == "evidence":  # uniform until `know_frequencies`
            self.register_buffer("log_prior", torch.zeros(vocab_size))

    def know_frequencies(self, token_counts: Tensor) -> None:
        if self.reads == "evidence":
            self.log_prior.copy_(log_frequencies(token_counts))

    @property
    def advice(self) -> str | None:
        width = self.backbone.input_table.shape[1]
        if self.reads == "evidence" or self.vocab_size <= width:
            return None
        return (
            f"algo.reads=view shows the network {width:,} numbers of a state of {self.vocab_size:,}, so it learns late what "
            "context says; algo.reads=evidence model.neighbours=2 learns it in minutes (docs/clock.md)"
        )

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        if self.time_law is None:
            return self.validation_loss(batch, draws)
        tau = self.time_law(draws.stratified(len(batch.tokens)), draws.step)
        loss = self._loss_at(tau, batch, draws)
        self.time_law.learn(tau, loss.sums, loss.counts)
        return loss

    def validation_loss(self, batch: Batch, draws: Draws) -> Loss:
        return self._loss_at(draws.stratified(len(batch.tokens)), batch, draws)

    def _loss_at(self, tau: Tensor, batch: Batch, draws: Draws) -> Loss:
        t = self.clock.time(tau)
        denoiser = self.denoiser(document_mask(batch.documents))
        if isinstance(denoiser, EvidenceDenoiser):
            times = t[:, None].expand(batch.tokens.shape)
            times = times.masked_fill(batch.given, 1.0) if self.clean_given else times
            x = noised(batch.tokens, times, draws.rows.seeds(len(tau)), self.log_prior)
            return token_loss(denoiser.predict(x, times, tau.float()), batch, tau)
        state = corrupt(batch.tokens, t.float(), denoiser.tables, draws.rows)
        state = Given(batch.tokens, batch.given, self.clean_given).seen(state, denoiser.tables)
        return token_loss(denoiser(state, tau.float()), batch, tau)

    def denoiser(self, mask: DocumentMask | None = None) -> SingleTimeDenoiser:
        if self.reads == "evidence":
            return EvidenceDenoiser(self.backbone, self.clock, self.log_prior, mask, self.clean_given)
        return SingleTimeDenoiser(self.backbone, self.clock, mask, self.clean_given)

    def context_free_loss(self, token_counts: Tensor, tau: Tensor, draws: Draws) -> Tensor:
        return context_free_cross_entropy(token_counts, self.clock.time(tau.double()), draws.local)


def log_frequencies(token_counts: Tensor) -> Tensor:
    """log pi (V,) from counts (V,); half a count is added to each token, so that none is impossible."""
    counts = token_counts.double() + 0.5
    return (counts / counts.sum()).log()
