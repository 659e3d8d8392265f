"""MDLM: masked diffusion. Masks replace tokens one by one, and the network predicts what they hide (arXiv 2406.07524).

The network is not told the time: the number of masks says enough (arXiv 2406.03736, 2409.02908). It never predicts the mask,
and tokens that are not masked are known (SUBS), so losses and draws exist at masks alone. Let c_i be the cross-entropy
-log p(x_i | visible tokens) at a mask i of a sequence of L tokens. Then

    -log p(x)  <=  E_t[ kappa'(t) / (1 - kappa(t))  sum of c_i over the masks ]
               =   E_k[ L / k  sum of c_i over k masks in random places ],    k ~ U{1 .. L},
since kappa' / (1 - kappa) times the probability (1 - kappa)^k kappa^(L - k) of a set of k masks integrates over t to
1 / (k C(L, k)), whatever the schedule. The bound is also the mean of -log p(x) over all orders of writing the tokens one by
one. Training and `bound` draw k. The published training draws t and then each mask: the same mean with more variance.
B batch, L length, V vocabulary.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Backbone, Batch, Bound, Loss
from flm.algos.losses import summed
from flm.draws import Draws
from flm.models.attention import document_mask
from flm.models.token_backbone import among_real
from flm.paths.masking import Places, drawn_masks, random_masks
from flm.paths.mixture import LogLinear, MaskSource, Schedule
from flm.posterior import TokenPosterior
from flm.ranges import Count, Index
from flm.samplers.solvers import MASK_SOLVERS
from flm.vocabulary_losses import cross_entropy


class MaskPredictor:
    """What samplers call: a backbone that reads token ids, masks among them, and predicts any token but the mask."""

    def __init__(self, backbone: nn.Module, source: MaskSource, schedule: Schedule):
        self.backbone, self.source, self.schedule = backbone, source, schedule

    def __call__(self, tokens: Tensor, t: Tensor | None = None, documents: Tensor | None = None) -> TokenPosterior:
        embedded = F.embedding(tokens, self.backbone.input_table)
        options = {} if documents is None else {"mask": document_mask(documents)}
        # published weights have a time embedding, which was only ever given 0
        posterior = self.backbone(embedded, embedded.new_zeros(len(tokens)), **options)
        return among_real(posterior, self.source.vocab_size, self.source.mask_id)


class MDLM(Algorithm):
    """The masked diffusion language model.

    Args:
        backbone: called as backbone(vocab_size=rows of its tables), V + 1 with a mask of its own; gives a module like `DiT`.
        vocab_size: V.
        length: L.
        schedule: kappa(t) for samplers; None: log-linear. Training does not depend on it.
        mask_id: the id in [0, V) of a mask that the tokenizer has, never predicted and in no text; None: V, one more row.

    Raises:
        ValueError: mask_id is not in [0, V).
    """

    validation_metric = "nelbo_nats"
    validation_says = "the mean is an upper bound on -log p"
    bound_kind = "variational upper bound"
    samplers = MASK_SOLVERS

    def __init__(
        self,
        backbone: Backbone,
        vocab_size: Count,
        length: Count,
        schedule: Schedule | None = None,
        mask_id: Index | None = None,
    ):
        super().__init__(vocab_size, length)
        if mask_id is not None and mask_id >= vocab_size:
            raise ValueError(f"algo.mask_id must be in [0, {vocab_size}) or null, not {mask_id}")
        self.source = MaskSource(vocab_size if mask_id is None else mask_id, vocab_size)
        self.schedule = LogLinear() if schedule is None else schedule
        self.backbone = backbone(vocab_size=self.source.num_states)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """The bound, at one random number of masks for each sequence."""
        points = draws.points(len(batch.tokens))
        masked, scale = random_masks(batch.weight > 0, draws.moved(points), draws.rows)
        total, nats = self._cross_entropy(batch, masked, batch.weight * masked * scale[:, None].to(batch.weight), points)
        return summed(total, nats, batch.weight, draws.moved(1 - points), scale)

    def bound(self, batch: Batch, draws: Draws) -> Bound:
        """One draw: the cross-entropy at a random number of masks, scaled from the masks to all scored tokens."""
        points = draws.points(len(batch.tokens))
        masked, scale = random_masks(batch.scored, draws.moved(points), draws.rows)
        _, nats = self._cross_entropy(batch, masked, masked.to(scale), points)
        return Bound(nats.sum(1) * scale)

    def context_free_loss(self, token_counts: Tensor, tau: Tensor, draws: Draws) -> Tensor:
        """The entropy of the unigrams: a mask says nothing."""
        return torch.special.entr(token_counts.double() / token_counts.sum()).sum().expand(tau.shape)

    def denoiser(self) -> MaskPredictor:
        return MaskPredictor(self.backbone, self.source, self.schedule)

    def _cross_entropy(self, batch: Batch, masked: Tensor, weight: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum, differentiable, and the nats at each mask (B, L), 0 elsewhere. weight (B, L) is 0 off the masks."""
        posterior = self.denoiser()(batch.tokens.masked_fill(masked, self.source.mask_id), documents=batch.documents)
        places = Places(masked, drawn_masks(points, masked.shape[1]))
        at_masks = replace(posterior, hidden=places.of(posterior.hidden))
        total, found = cross_entropy(at_masks, places.of(batch.tokens), places.of(weight))
        return total, places.spread(found.double())
