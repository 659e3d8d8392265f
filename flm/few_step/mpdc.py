"""MPDC: consistency of predictions in expectation, without a teacher (CDLM, arXiv 2605.00161).

For a noisier time t and a cleaner time s of the same path, exact posteriors obey the tower rule D_t(x_t) = E[D_s(x_s) | x_t].
So the prediction f at x_t learns to be, on average, that at x_s:

    div( f_(x_s), f(x_t) )  +  anchor,     x_s ~ q(x_s | x_t, y),  f_ a constant copy of f.

The bridge q with the *true* token y is sampled forwards, with the same joint distribution: x_s from y, and then x_t from x_s,
which keeps each token with probability kappa_t / kappa_s and is noise otherwise. With masks, x_s then reveals a mask of x_t
with probability (kappa_s - kappa_t) / (1 - kappa_t). Where it does, and in the rows of the anchor, the target is the token
itself, by cross-entropy. Without an anchor a constant f would be consistent too.

Only the divergence "forward", cross-entropy with f_ as target, has the mean as its minimiser, and so the posterior, as plain
cross-entropy has. "reverse" is mode-seeking, and "jsd" lies between them. The paper gives no numbers for pairs of times, the
share of the anchor and the divergence; the defaults here are our choice. B batch, L length, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from flm.algos.algorithm import Batch, Loss, MaybeTimedBackbone
from flm.algos.dfm import DFM, SOURCES
from flm.algos.losses import summed
from flm.draws import Draws
from flm.outputs import Output
from flm.paths.flow_map import PAIR_LAWS, PairLaw
from flm.paths.masking import Places, most_masks
from flm.paths.mixture import Schedule
from flm.posterior import TokenPosterior
from flm.ranges import Count, Index, OpenShare, Share, one_of
from flm.vocabulary_losses import cross_entropy, of_logits

SMALLEST = 1e-30  # least probability, where fp32 would underflow


def forward_divergence(posterior: TokenPosterior, target: Output, weight: Tensor) -> tuple[Tensor, Tensor]:
    """-sum_k q_k log p_k, which is KL(q | p) plus the entropy of q."""
    return cross_entropy(posterior, target, weight)


def reverse_divergence(posterior: TokenPosterior, target: Output, weight: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p | q)."""

    def value_and_slope(part: slice, logits: Tensor, with_slope: bool) -> tuple[Tensor, Tensor | None]:
        log_p = logits.log_softmax(-1)
        ratio, p = log_p - target.chunk(part).to(logits.dtype).clamp_min(SMALLEST).log(), log_p.exp()
        value = torch.linalg.vecdot(p, ratio)
        return value, ratio.sub_(value[:, None]).mul_(p) if with_slope else None

    return of_logits(posterior, value_and_slope, weight)


def jensen_shannon(posterior: TokenPosterior, target: Output, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(KL(p | m) + KL(q | m)) / 2 with m = (p + q) / 2, at most log 2."""

    def value_and_slope(part: slice, logits: Tensor, with_slope: bool) -> tuple[Tensor, Tensor | None]:
        log_p, q = logits.log_softmax(-1), target.chunk(part).to(logits.dtype)
        p = log_p.exp()
        log_m = ((p + q) / 2).clamp_min(SMALLEST).log()
        ratio = log_p - log_m
        of_p = torch.linalg.vecdot(p, ratio)
        value = (of_p + torch.linalg.vecdot(q, q.clamp_min(SMALLEST).log() - log_m)) / 2
        return value, ratio.sub_(of_p[:, None]).mul_(p).div_(2) if with_slope else None

    return of_logits(posterior, value_and_slope, weight)


DIVERGENCES: dict[str, Callable[[TokenPosterior, Output, Tensor], tuple[Tensor, Tensor]]] = {
    "forward": forward_divergence,
    "reverse": reverse_divergence,
    "jsd": jensen_shannon,
}


class MPDC(DFM):
    """A discrete flow model that is trained to be consistent along the path.

    Args:
        backbone: as for DFM.
        vocab_size: V.
        length: L.
        source: of SOURCES.
        schedule: kappa, from 0 at t = 0 to 1; None: t itself.
        divergence: of DIVERGENCES.
        anchor_share: share of the rows whose target is the data. A mask source adds the tokens that x_s reveals.
        time_pairs: distribution of t and s.
        mask_id: as in DFM.
        eps: of its bound.
    """

    def __init__(
        self,
        backbone: MaybeTimedBackbone,
        vocab_size: Count,
        length: Count,
        source: Annotated[str, one_of(SOURCES)] = "mask",
        schedule: Schedule | None = None,
        divergence: Annotated[str, one_of(DIVERGENCES)] = "forward",
        anchor_share: Share = 0.2,
        time_pairs: PairLaw = "uniform_pair",
        mask_id: Index | None = None,
        eps: OpenShare = 1e-3,
    ):
        super().__init__(backbone, vocab_size, length, source, schedule, mask_id=mask_id, eps=eps)
        self.divergence, self.anchor_share, self.time_pairs = DIVERGENCES[divergence], anchor_share, time_pairs

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        size, length = batch.tokens.shape
        pair, anchor = PAIR_LAWS[self.time_pairs](size, draws), draws.points(size) < self.anchor_share
        noisier, cleaner, anchored = map(draws.moved, (*pair, anchor[:, None]))
        ahead, state = self.coupled(batch, noisier, cleaner, draws)
        with torch.no_grad():
            target = self.backbone(ahead, cleaner.float(), batch.documents)
        posterior = self.backbone(state, noisier.float(), batch.documents)
        scored, told = batch.weight > 0, anchored
        if self.source.visible:
            scored, told = scored & (state != batch.tokens), told | (ahead == batch.tokens)
        total, nats, metrics = 0.0, 0.0, {}
        for name, at, most in zip(("data_nats", "consistency"), (told, ~told), self._most(pair, anchor, length), strict=True):
            places = Places(scored & at, most)
            chosen, weight = replace(posterior, hidden=places.of(posterior.hidden)), places.weight(batch.weight)
            if name == "data_nats":
                part, found = cross_entropy(chosen, places.of(batch.tokens), weight)
            else:
                part, found = self.divergence(chosen, replace(target, hidden=places.of(target.hidden)), weight)
            nats = nats + places.spread(found.double())
            total = total + part
            metrics[name] = (found * weight).sum(), weight.sum()
        loss = summed(total, nats, batch.weight, noisier)
        loss.metrics = metrics
        return loss

    def _most(self, pair: tuple[Tensor, Tensor], anchor: Tensor, length: int) -> tuple[int, int]:
        """The most positions whose target is the token, and the most whose target is a prediction; for times on the CPU."""
        if not self.source.visible:
            told = anchor.double()
            return most_masks(told, length), most_masks(1 - told, length)
        kappa, ahead = map(self.schedule.kappa, pair)
        return (
            most_masks(torch.where(anchor, 1 - kappa, ahead - kappa), length),
            most_masks(torch.where(anchor, 0.0, 1 - ahead), length),
        )

    def coupled(self, batch: Batch, noisier: Tensor, cleaner: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """x_s at the cleaner times (B,) and x_t at the noisier ones, on one path. Positions without weight are never noise."""
        free, shape = batch.weight > 0, batch.tokens.shape
        kappa, kappa_ahead = (self.schedule.kappa(time)[:, None] for time in (noisier, cleaner))
        kept = torch.where(kappa_ahead > 0, kappa / kappa_ahead, 0.0)
        states = []
        tokens = batch.tokens
        for share in (kappa_ahead, kept):
            lost = free & (draws.per_sequence(*shape) >= share)
            tokens = torch.where(lost, self.source.noise(draws.per_sequence(*shape)), tokens)
            states.append(tokens)
        return states[0], states[1]
