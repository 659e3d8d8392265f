"""AR: the autoregressive baseline, next-token cross-entropy on the blocks that flow models are trained on.

Its likelihood is exact: log p(x) = sum_i log p(x_i | x_0 .. x_{i-1}), over every token of a block, the first included.
B batch, L length, V vocabulary.
"""

import torch
from torch import Tensor

from flm.algos.algorithm import Algorithm, Batch, Bound, LeftToRightBackbone, Loss
from flm.algos.losses import token_loss
from flm.draws import Draws
from flm.models.causal import LeftToRight, by_document, left_to_right
from flm.posterior import TokenPosterior
from flm.ranges import Count
from flm.samplers.autoregressive import AutoregressiveSampler


class AR(Algorithm):
    """The autoregressive language model.

    Args:
        backbone: called as backbone(vocab_size=V, causal=True, conditioned=False); see `left_to_right`.
        vocab_size: V.
        length: L.
    """

    validation_metric = "nll_nats"
    bound_kind = "exact"
    samplers = {"": AutoregressiveSampler}

    def __init__(self, backbone: LeftToRightBackbone, vocab_size: Count, length: Count):
        super().__init__(vocab_size, length)
        self.backbone = left_to_right(backbone, vocab_size)

    def predictions(self, tokens: Tensor) -> TokenPosterior:
        """Of each of tokens (B, L) from those before it."""
        return self.backbone(tokens)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Nats of the tokens with weight. Given tokens are read but not predicted; other documents are not read."""
        return token_loss(by_document(self.predictions, batch.tokens, batch.documents), batch)

    @torch.no_grad()
    def nll(self, tokens: Tensor) -> Tensor:
        """-log p(token | the tokens before it) in nats, (B, L), at every position of tokens (B, L); exact.

        Its sum over a span is -log p of that span given all tokens before it and none after it.
        """
        return -self.predictions(tokens).log_prob(tokens)

    def bound(self, batch: Batch, draws: Draws) -> Bound:
        """-log p of the scored tokens, each given the tokens before it, summed in float64. Nothing is drawn."""
        nats = -by_document(self.predictions, batch.tokens, batch.documents).log_prob(batch.tokens).double()
        return Bound((nats * batch.scored).sum(1))

    def denoiser(self) -> LeftToRight:
        return self.backbone
