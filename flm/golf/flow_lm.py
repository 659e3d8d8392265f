"""Flow matching on token embeddings, conditioned on a clean first part: a sequence-to-sequence flow language model.

The loss follows FlowSeq (Hu et al., EACL 2024): the squared error of the velocity on the straight path, and the "anchor",
the cross-entropy of the tokens at the point to which the velocity leads. The anchor ties the end of the flow to embeddings.

The cross-entropy of the denoised state, averaged over the path, is not a likelihood. Near t = 1 the state contains the answer,
and even the velocity v = 0 reads it off. `denoising_curve` reports both, and `conditional_bound` is a likelihood bound.

B batch, L length, D width, V vocabulary.
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
    """Estimates the clean state with a network that predicts either the velocity or the clean state itself."""

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
        """The network's output (B, L, D): a velocity or a clean state. Arguments as in `FlowEncoder.forward`."""
        return self.backbone(state, t, estimate if self.self_condition else None, mask)


class FlowLM(Algorithm):
    """The embedding flow language model.

    Args:
        backbone: called as backbone(vocab_size=V); returns a module like `flm.golf.flow_encoder.FlowEncoder`.
        vocab_size: V.
        length: L.
        source_fraction: in [0, 1); the first floor(source_fraction * L) positions are given, and so are all of weight 0. The
            others are the targets.
        param: output of the network: "velocity", or "x1", the clean embedding.
        mse_weight: factor of the squared error, a mean over dimensions and positions.
        anchor_weight: factor of the cross-entropy.
        mse_mask: the squared error is on the "target" positions only, or on "all", as in FlowSeq.
        t_sampler: "stratified" over the global batch, "uniform", "uniform_eps" (on [0.001, 1]) or "logit_normal".
        self_condition: in half of the steps the network reads its own first estimate (needs model.self_condition=true).

    Raises:
        ValueError: the backbone does not read embeddings, or does not read an estimate although self_condition is on.
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
        # the bound is on the target given the source, so it is one on whole sequences only if nothing is given
        self.bound_kind = None if self.source_length else "variational upper bound"
        self.scored_by = "flow_lm_eval" if self.source_length else None

    def target_weight(self, batch: Batch) -> Tensor:
        """(B, L): the batch's weight on target positions, 0 on those that are given."""
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
        """Weights (B, L) of the squared errors.

        With mse_mask="target" they are `weight`. With "all" every position of a document has the same weight, and together they
        have the weight of the document's targets. If all rows have equally many targets, this gives the mean over all
        positions. Padding has no targets, so its weight is 0.
        """
        if self.mse_mask == "target":
            return weight
        if batch.documents is None:
            return weight.mean(1, keepdim=True).expand_as(weight)
        together = DocumentMask(batch.documents).dense[:, 0].to(weight)
        return (together @ weight[..., None])[..., 0] / together.sum(-1)

    @torch.no_grad()
    def validation_loss(self, batch: Batch, draws: Draws) -> Loss:
        """The cross-entropy of the denoised state at stratified times. It gives a curve along the path, not a likelihood."""
        t = draws.stratified(len(batch.tokens))
        weight = self.target_weight(batch)
        _, _, state = self._state(batch, weight, t, draws)
        z1 = self.denoiser()(state, t.float(), None, document_mask(batch.documents))
        return summed(*self._cross_entropy(z1, batch.tokens, weight), weight, t)

    context_free_has_weights = True  # it depends on the embeddings

    @torch.no_grad()
    def context_free_loss(self, token_counts: Tensor, tau: Tensor, draws: Draws) -> Tensor:
        """Cross-entropy (T,) of the exact posterior of a token given only its own noised embedding and unigram frequencies.

        Args:
            token_counts: (V,).
            tau: (T,) times, below 1.
        """
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
        """Cross-entropy in nats, summed over the target tokens of a sequence, (T, B) of the model and (T, B) of v = 0.

        Both read the same noise. The model has learned only what it gains over v = 0.

        Args:
            times: (T,) in [0, 1].
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
            t1: in (0, 1), the time at which the path ends and tokens are read off with the logits. The bound holds for every
                t1; how tight it is depends on t1.

        Raises:
            ValueError: t1 is not in (0, 1).
        """
        weight, mask, denoiser = self.target_weight(batch), document_mask(batch.documents), self.denoiser()
        t = diffusion_times(draws.stratified(len(batch.tokens)), t1)
        clean, noise, state = self._state(batch, weight, t, draws)
        output = denoiser.output(state, t.float(), None, mask).double()
        if self.predicts_velocity:
            error = clean.double() - noise - output
        else:  # e - z1 = (1 - t) (v* - v) for the true velocity v*, and t <= t1 < 1
            error = (clean.double() - output) / (1 - t)[:, None, None]
        squared = (error.square().sum(-1) * weight).sum(1)
        end = torch.full_like(t, t1)
        _, _, state = self._state(batch, weight, end, draws)
        return _bound(
            diffusion_nats(squared, t, t1), self._nats(denoiser(state, end.float(), None, mask), batch.tokens, weight)
        )

    @torch.no_grad()
    def zero_velocity_bound(self, batch: Batch, draws: Draws, t1: float = 0.9) -> Bound:
        """As `conditional_bound`, for v = 0. The integral over time is then known in closed form."""
        weight = self.target_weight(batch)
        norms = self.backbone.input_table.double().square().sum(-1)[batch.tokens]
        width = self.backbone.input_table.shape[1]
        diffusion = ((norms + width) * weight).sum(1) * zero_velocity_factor(t1)
        _, _, state = self._state(batch, weight, torch.full_like(diffusion, t1), draws)
        return _bound(diffusion, self._nats(state, batch.tokens, weight))

    def bound(self, batch: Batch, draws: Draws, t1: float = 0.9) -> Bound:
        """As `conditional_bound`. It is a bound on whole sequences only if source_fraction is 0."""
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
        # not under autocast: logits are about as large as D, and bf16 would round them to whole nats
        with torch.autocast(z1.device.type, enabled=False):
            table = self.backbone.input_table
            return cross_entropy(TokenPosterior(z1.to(table.dtype), table, self.backbone.logit_bias), tokens, weight)

    def _nats(self, z1: Tensor, tokens: Tensor, weight: Tensor) -> Tensor:
        table = self.backbone.input_table
        log_prob = TokenPosterior(z1.to(table.dtype), table, self.backbone.logit_bias).log_prob(tokens)
        return -(log_prob.double() * weight).sum(1)


def _bound(diffusion: Tensor, reconstruction: Tensor) -> Bound:
    return Bound(diffusion + reconstruction, {"diffusion": diffusion, "reconstruction": reconstruction})
