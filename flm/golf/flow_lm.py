"""Flow matching on token embeddings, conditioned on a clean first part: a sequence-to-sequence flow language model.

After FlowSeq (Hu et al., EACL 2024): a velocity loss on the straight path, and a cross-entropy of the point the velocity
leads to ("anchor"), which ties the flow to the embeddings it must end on. B batch, L length, D width, V vocabulary.

The cross-entropy of the denoised state, averaged over the path, is no likelihood: near t = 1 the state holds the answer, and
no network at all (v = 0) reads it off. `denoising_curve` gives both; `conditional_bound` is a likelihood bound.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Backbone, Batch, Bound, Loss
from flm.algos.losses import summed
from flm.draws import Draws, randn
from flm.golf.embedding_sampler import EmbeddingFlowSampler
from flm.golf.linear_embedding import clean_of, corrupt, diffusion_nats, diffusion_times, zero_velocity_factor
from flm.models.attention import DocumentMask, document_mask
from flm.posterior import TokenPosterior
from flm.ranges import Count, NonNegative, one_of
from flm.vocabulary_losses import cross_entropy

_REFERENCE_DRAWS = 1024

_TIMES: dict[str, Callable[[Draws, int], Tensor]] = {
    "stratified": lambda draws, count: draws.stratified(count),
    "uniform": lambda draws, count: draws.uniform(count, dtype=torch.float64),
    "uniform_eps": lambda draws, count: 1e-3 + (1 - 1e-3) * draws.uniform(count, dtype=torch.float64),
    "logit_normal": lambda draws, count: draws.normal(count, dtype=torch.float64).sigmoid(),
}


class VelocityDenoiser:
    """Estimates of the clean state out of a network's velocity, or out of a network that gives them itself."""

    def __init__(self, backbone: nn.Module, predicts_velocity: bool, self_condition: bool):
        self.backbone, self.predicts_velocity, self.self_condition = backbone, predicts_velocity, self_condition

    @property
    def table(self) -> Tensor:
        return self.backbone.input_table

    @property
    def bias(self) -> Tensor | None:
        return self.backbone.logit_bias

    def __call__(self, state: Tensor, t: Tensor, estimate: Tensor | None = None, mask: DocumentMask | None = None) -> Tensor:
        output = self.output(state, t, estimate, mask)
        return clean_of(state, output, t) if self.predicts_velocity else output

    def output(self, state: Tensor, t: Tensor, estimate: Tensor | None = None, mask: DocumentMask | None = None) -> Tensor:
        """What the network says, velocity or clean state."""
        return self.backbone(state, t, estimate if self.self_condition else None, mask)


class FlowLM(Algorithm):
    """The embedding flow language model.

    Args:
        backbone: called as backbone(vocab_size=V); gives a module like `flm.golf.flow_encoder.FlowEncoder`.
        vocab_size: V.
        length: L.
        source_fraction: the first floor(source_fraction * L) positions are given, in [0, 1); so is what has weight 0.
        param: what the network gives: "velocity", or "x1", the clean embedding.
        mse_weight: of the squared error, a mean over dimensions and positions.
        anchor_weight: of the cross-entropy.
        mse_mask: squared error on the "target" alone, or on "all" positions, as in FlowSeq.
        t_sampler: "stratified" over the global batch, "uniform", "uniform_eps" (on [0.001, 1]) or "logit_normal".
        self_condition: half of the steps show the network its own first estimate (needs model.self_condition=true).
    """

    samplers = {"": EmbeddingFlowSampler}

    def __init__(
        self,
        backbone: Backbone,
        vocab_size: Count,
        length: Count,
        source_fraction: Annotated[float, Ge(0), Lt(1)] = 0.5,
        param: Literal["velocity", "x1"] = "velocity",
        mse_weight: NonNegative = 1.0,
        anchor_weight: NonNegative = 1.0,
        mse_mask: Literal["target", "all"] = "target",
        t_sampler: Annotated[str, one_of(_TIMES)] = "stratified",
        self_condition: bool = False,
    ):
        super().__init__(vocab_size, length)
        self.backbone = backbone(vocab_size=vocab_size)
        if not hasattr(self.backbone, "logit_bias"):
            raise ValueError("algo=flow_lm needs a network that reads and writes embeddings: model=golf_flow")
        if self_condition and getattr(self.backbone, "estimate", None) is None:
            raise ValueError("algo.self_condition=true needs a network that reads an estimate: model.self_condition=true")
        self.source_length = int(source_fraction * length)
        self.predicts_velocity = param == "velocity"
        self.mse_weight, self.anchor_weight, self.mse_mask = mse_weight, anchor_weight, mse_mask
        self.self_condition, self._draw_times = self_condition, _TIMES[t_sampler]
        # the bound is on the target given the source: one on whole sequences only where nothing is given
        self.bound_kind = None if self.source_length else "variational upper bound"
        self.scored_by = "flow_lm_eval" if self.source_length else None

    def target_weight(self, batch: Batch) -> Tensor:
        """(B, L): the batch's weight on what is to be generated, 0 on what is given."""
        weight = batch.weight.clone()
        weight[:, : self.source_length] = 0
        return weight

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        weight, t = self.target_weight(batch), self._draw_times(draws, len(batch.tokens))
        clean, noise, state = self._state(batch, weight, t, draws)
        denoiser, mask = self.denoiser(), document_mask(batch.documents)
        estimate = None
        if self.self_condition and draws.shared_uniform() < 0.5:
            with torch.no_grad():
                estimate = denoiser(state, t.float(), None, mask)
        output = denoiser.output(state, t.float(), estimate, mask)
        z1 = clean_of(state, output, t) if self.predicts_velocity else output
        squared = ((clean - noise if self.predicts_velocity else clean) - output).square().mean(-1)
        mse = (squared * self._squared_weight(batch, weight)).sum()
        anchor, per_token = self._cross_entropy(z1, batch.tokens, weight)
        per_token = self.mse_weight * squared.detach() + self.anchor_weight * per_token
        loss = summed(self.mse_weight * mse + self.anchor_weight * anchor, per_token, weight, t)
        loss.metrics["velocity_mse" if self.predicts_velocity else "clean_mse"] = mse.detach(), loss.count
        loss.metrics["anchor_ce_nats"] = anchor.detach(), loss.count
        return loss

    def _squared_weight(self, batch: Batch, weight: Tensor) -> Tensor:
        """(B, L) of the squared errors. On all positions they are a mean over those of each document that stands for as many
        as it has targets: in a batch of equal rows, the mean over all positions. Padding has none."""
        if self.mse_mask == "target":
            return weight
        if batch.documents is None:
            return weight.mean(1, keepdim=True).expand_as(weight)
        together = DocumentMask(batch.documents).dense[:, 0].to(weight)
        return (together @ weight[..., None])[..., 0] / together.sum(-1)

    @torch.no_grad()
    def validation_loss(self, batch: Batch, draws: Draws) -> Loss:
        """The cross-entropy of the denoised state at stratified times: no likelihood, but a curve along the path."""
        t = draws.stratified(len(batch.tokens))
        weight = self.target_weight(batch)
        _, _, state = self._state(batch, weight, t, draws)
        z1 = self.denoiser()(state, t.float(), None, document_mask(batch.documents))
        return summed(*self._cross_entropy(z1, batch.tokens, weight), weight, t)

    context_free_has_weights = True  # the embeddings

    @torch.no_grad()
    def context_free_loss(self, token_counts: Tensor, tau: Tensor, draws: Draws) -> Tensor:
        """Of the exact posterior of a token given its own noised embedding and the unigram frequencies."""
        table = self.backbone.input_table.double()
        prior = token_counts.double() / token_counts.sum()
        tokens = torch.multinomial(prior, _REFERENCE_DRAWS, True, generator=draws.local)[None]
        losses = []
        for t in tau.tolist():
            noise = randn(draws.local, 1, _REFERENCE_DRAWS, table.shape[1], dtype=torch.float64)
            state = (1 - t) * noise + t * table[tokens]
            precision = t / (1 - t) ** 2
            bias = prior.log() - precision * t / 2 * table.square().sum(-1)
            losses.append(-TokenPosterior(precision * state, table, bias).log_prob(tokens).mean())
        return torch.stack(losses)

    # Evaluation -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def denoising_curve(self, batch: Batch, times: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Nats of the target tokens, summed per sequence, at each time: (T, B) of the model, and of v = 0.

        v = 0 reads the same noise: whatever the model does not have below it, it did not learn. times (T,) in [0, 1].
        """
        weight, denoiser, mask = self.target_weight(batch), self.denoiser(), document_mask(batch.documents)
        curves: tuple[list[Tensor], list[Tensor]] = ([], [])
        for time in times.tolist():
            t = torch.full((len(batch.tokens),), time, dtype=torch.float64, device=batch.tokens.device)
            _, _, state = self._state(batch, weight, t, draws)
            for curve, z1 in zip(curves, (denoiser(state, t.float(), None, mask), state), strict=True):
                curve.append(self._nats(z1, batch.tokens, weight))
        return torch.stack(curves[0]), torch.stack(curves[1])

    @torch.no_grad()
    def conditional_bound(self, batch: Batch, draws: Draws, t1: float = 0.9) -> Bound:
        """One draw of an upper bound on -log p(target | source) in nats, (B,), summed over the targets.

        Args:
            t1: in (0, 1), where the path hands over to the logits; valid for every value, tightest where they are certain.
        """
        weight, mask, denoiser = self.target_weight(batch), document_mask(batch.documents), self.denoiser()
        t = diffusion_times(draws.stratified(len(batch.tokens)), t1)
        clean, noise, state = self._state(batch, weight, t, draws)
        output = denoiser.output(state, t.float(), None, mask).double()
        if self.predicts_velocity:
            error = clean.double() - noise - output
        else:  # e - z1 = (1 - t) (v* - v), and t <= t1 < 1
            error = (clean.double() - output) / (1 - t)[:, None, None]
        squared = (error.square().sum(-1) * weight).sum(1)
        end = torch.full_like(t, t1)
        _, _, state = self._state(batch, weight, end, draws)
        return _bound(
            diffusion_nats(squared, t, t1), self._nats(denoiser(state, end.float(), None, mask), batch.tokens, weight)
        )

    @torch.no_grad()
    def zero_velocity_bound(self, batch: Batch, draws: Draws, t1: float = 0.9) -> Bound:
        """The same for v = 0, its integral in closed form."""
        weight = self.target_weight(batch)
        norms = self.backbone.input_table.double().square().sum(-1)[batch.tokens]
        width = self.backbone.input_table.shape[1]
        diffusion = ((norms + width) * weight).sum(1) * zero_velocity_factor(t1)
        _, _, state = self._state(batch, weight, torch.full_like(diffusion, t1), draws)
        return _bound(diffusion, self._nats(state, batch.tokens, weight))

    def bound(self, batch: Batch, draws: Draws, t1: float = 0.9) -> Bound:
        """As `conditional_bound`; of whole sequences, which takes source_fraction = 0."""
        return self.conditional_bound(batch, draws, t1)

    def denoiser(self) -> VelocityDenoiser:
        return VelocityDenoiser(self.backbone, self.predicts_velocity, self.self_condition)

    # Parts ------------------------------------------------------------------------------------------------------------

    def _state(self, batch: Batch, weight: Tensor, t: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Clean embeddings, noise and the state at t (B,), each (B, L, D)."""
        clean = F.embedding(batch.tokens, self.backbone.input_table)
        noise = draws.normal(*clean.shape, dtype=clean.dtype)
        return clean, noise, corrupt(clean, noise, t, weight == 0)

    def _cross_entropy(self, z1: Tensor, tokens: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        # never under autocast: logits have the size of D, and bf16 would round them to whole nats
        with torch.autocast(z1.device.type, enabled=False):
            table = self.backbone.input_table
            return cross_entropy(TokenPosterior(z1.to(table.dtype), table, self.backbone.logit_bias), tokens, weight)

    def _nats(self, z1: Tensor, tokens: Tensor, weight: Tensor) -> Tensor:
        table = self.backbone.input_table
        log_prob = TokenPosterior(z1.to(table.dtype), table, self.backbone.logit_bias).log_prob(tokens)
        return -(log_prob.double() * weight).sum(1)


def _bound(diffusion: Tensor, reconstruction: Tensor) -> Bound:
    return Bound(diffusion + reconstruction, {"diffusion": diffusion, "reconstruction": reconstruction})
