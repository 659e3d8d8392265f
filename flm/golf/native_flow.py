"""Native flow: an autoregressive model whose last hidden state is corrected by a flow that is trained with it.

The correction acts on the hidden state before the output table. It sees each position by itself, so the model stays
autoregressive and its likelihood exact. B batch, L length, D width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from torch import Tensor, nn

from flm.algos.algorithm import Batch, LeftToRightBackbone, Loss
from flm.algos.ar import AR
from flm.algos.losses import token_loss
from flm.draws import Draws
from flm.models.causal import LeftToRight, by_document
from flm.posterior import TokenPosterior
from flm.ranges import CalledWith, Count, NonNegative


class NativeFlow(AR):
    """An autoregressive model whose training loss is the cross-entropy of corrected predictions + loss_weight * flow loss.

    Args:
        backbone, vocab_size, length: see `AR`.
        flow: called as flow(dim=D); returns a module like `NativeFlowMatcher`. None: the plain autoregressive model. With
            one seed the backbone starts from the same parameters in both cases.
        loss_weight: factor of the flow's loss, a mean square per dimension; at least 0.
    """

    def __init__(
        self,
        backbone: LeftToRightBackbone,
        vocab_size: Count,
        length: Count,
        flow: Annotated[Callable[..., nn.Module] | None, CalledWith.of("dim")] = None,
        loss_weight: NonNegative = 0.1,
    ):
        super().__init__(backbone, vocab_size, length)
        self.loss_weight = loss_weight
        self.flow = None if flow is None else flow(dim=self.backbone.hidden_size)

    def predictions(self, tokens: Tensor) -> TokenPosterior:
        return self.corrected(self.backbone(tokens))

    def corrected(self, posterior: TokenPosterior) -> TokenPosterior:
        """A prediction of the backbone, with its hidden states (B, L, D) corrected by the flow, if there is one."""
        return posterior if self.flow is None else replace(posterior, hidden=self.flow(posterior.hidden))

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """The training loss: cross-entropy in nats plus the flow's loss times loss_weight, both weighted by `batch.weight`."""
        plain = by_document(self.backbone, batch.tokens, batch.documents)
        loss = token_loss(self.corrected(plain), batch)
        loss.metrics["cross_entropy_nats_per_token"] = loss.sum.detach(), loss.count
        if self.flow is not None:
            flow = (self.flow.loss(plain.hidden, batch.tokens, plain.table, draws) * batch.weight).sum()
            loss.metrics["flow_mean_square"] = flow.detach(), loss.count
            loss.sum = loss.sum + self.loss_weight * flow
        return loss

    def validation_loss(self, batch: Batch, draws: Draws) -> Loss:
        """Nats per token, without the flow's loss."""
        return super().loss(batch, draws)

    def denoiser(self) -> LeftToRight:
        return CorrectedReader(self.backbone, self.corrected)


class CorrectedReader:
    """A `LeftToRight` that corrects the predictions of another one."""

    def __init__(self, network: LeftToRight, corrected: Callable[[TokenPosterior], TokenPosterior]):
        self.network, self.corrected = network, corrected

    def __call__(self, tokens: Tensor) -> TokenPosterior:
        return self.corrected(self.network(tokens))

    def new_cache(self, capacity: int) -> Any:
        return self.network.new_cache(capacity)

    def next_token(self, tokens: Tensor, cache: Any) -> TokenPosterior:
        return self.corrected(self.network.next_token(tokens, cache))
