"""Discrete flow matching (arXiv 2407.15595, 2412.03487): a posterior of the data given a sequence partly noise.

At time t a position shows its token with probability kappa(t), and otherwise noise: a mask, or a token drawn uniformly. The
network gives p(token | state); a sampler jumps to draws from it. With w = kappa' / (1 - kappa) and the cross-entropy CE of p,

    ce               CE
    weighted         w CE
    generalized_kl   w ([state != token] CE - p(state) + [state = token]),   a bound on -log p(text)

are the three objectives: the mean over the positions that count, in one state at one random t.

With a mask source the tokens that are not masked are known. Their terms are 0 in all three objectives, so logits are computed
at masks alone; and the last two objectives are the same, the loss of masked diffusion. With a uniform source nothing shows
which positions are noise, so every position that may be is scored. Scoring only the noisy ones would train another posterior
than the one that samplers jump to.

Validation and `bound` estimate the bound, whatever the objective. With a mask source they draw a number k of masks and a time
to go with it (`masks_by_key`): the mean cross-entropy at the masks is that bound, whatever the schedule.
B batch, L length, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from flm.algos.algorithm import Algorithm, Batch, Bound, Loss, MaybeTimedBackbone
from flm.algos.losses import summed
from flm.draws import Draws
from flm.models.token_backbone import TokenBackbone, token_backbone
from flm.paths.masking import MaskingCurriculum, Places, drawn_masks, masks_by_key, most_masks, window_masks
from flm.paths.mixture import MaskSource, Polynomial, Schedule, Source, UniformSource
from flm.paths.mixture_bound import generalized_kl, unigram_generalized_kl
from flm.posterior import TokenPosterior
from flm.ranges import Count, Index, OpenShare, Positive, one_of
from flm.samplers.solvers import BLOCK_SOLVERS, JUMP_SOLVERS, MASK_SOLVERS
from flm.vocabulary_losses import cross_entropy

SOURCES = ("mask", "uniform")
OBJECTIVES = ("ce", "weighted", "generalized_kl")


class TokenDenoiser:
    """What samplers call: the network's prediction, with the source and schedule of the path it was trained on."""

    def __init__(self, backbone: TokenBackbone, source: Source, schedule: Schedule):
        self.backbone, self.source, self.schedule = backbone, source, schedule

    def __call__(self, tokens: Tensor, t: Tensor, documents: Tensor | None = None) -> TokenPosterior:
        return self.backbone(tokens, t, documents)

    def block_reader(
        self, blocks: Tensor, documents: Tensor | None, earlier: bool, keep: bool
    ) -> Callable[..., TokenPosterior]:
        """As of `flm.samplers.masked.DiscreteDenoiser`, where the backbone has it."""
        if not hasattr(self.backbone, "block_reader"):
            raise ValueError("sampling.block_cache and block_sees are for networks that keep keys and values: model=qwen3")
        return self.backbone.block_reader(blocks, documents, earlier, keep)


class DFM(Algorithm):
    """Discrete flow matching.

    Args:
        backbone: called as backbone(vocab_size=ids it must read); gives a token backbone, or a module like `DiT`; see
            `flm.models.token_backbone.token_backbone`.
        vocab_size: V.
        length: L.
        source: of SOURCES.
        schedule: kappa, from 0 at t = 0 to 1; None: t itself.
        objective: of OBJECTIVES.
        mask_id: the id in [0, V) of a mask that the tokenizer has, in no text; None: the token backbone's own, or one more row.
        eps: training draws t in [0, 1 - eps]: the weight is infinite at 1.
        max_weight: upper limit of w. Rare large losses become smaller, and the loss is no bound any more. None: no limit.
        masking: strategies of corruption in training; None: each position by itself.

    Raises:
        ValueError: options contradict each other, or the schedule does not start at 0.
    """

    validation_metric = "nelbo_nats"
    validation_says = "the mean is an upper bound on -log p"
    bound_kind = "variational upper bound"
    samplers = {"exact": BLOCK_SOLVERS["exact"], **BLOCK_SOLVERS}  # with the mask source and Qwen3; see __init__

    def __init__(
        self,
        backbone: MaybeTimedBackbone,
        vocab_size: Count,
        length: Count,
        source: Annotated[str, one_of(SOURCES)] = "mask",
        schedule: Schedule | None = None,
        objective: Annotated[str, one_of(OBJECTIVES)] = "weighted",
        mask_id: Index | None = None,
        eps: OpenShare = 1e-3,
        max_weight: Positive | None = None,
        masking: MaskingCurriculum | None = None,
    ):
        super().__init__(vocab_size, length)
        if source != "mask" and mask_id is not None:
            raise ValueError(f"algo.mask_id={mask_id} is for algo.source=mask")
        if max_weight is not None and objective == "ce":
            raise ValueError(f"algo.max_weight={max_weight}: algo.objective=ce has no weights to cut; leave it null")
        self.schedule = Polynomial() if schedule is None else schedule
        if self.schedule.kappa(torch.zeros((), dtype=torch.float64, device="cpu")) != 0:
            name = type(self.schedule).__name__
            raise ValueError(f"algo.schedule={name} does not start at 0: take flm.paths.mixture.Polynomial or Cosine")
        self.backbone = token_backbone(backbone, vocab_size, source == "mask", mask_id)
        size = self.backbone.real_vocab_size
        self.source: Source = MaskSource(self.backbone.mask_id, size) if source == "mask" else UniformSource(size)
        if not self.source.visible:
            self.samplers = JUMP_SOLVERS
        elif not hasattr(self.backbone, "block_reader"):
            self.samplers = {"exact": MASK_SOLVERS["exact"], **MASK_SOLVERS}
        self.objective, self.eps, self.max_weight, self.masking = objective, eps, max_weight, masking

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """The objective over the positions that may be noise, at one t a sequence."""
        points = draws.points(len(batch.tokens)) * (1 - self.eps)
        sigma, t = 1 - self.schedule.kappa(points), draws.moved(points)
        batch, noisy, most = self._corrupted(batch, sigma, draws)
        rate = self.schedule.rate(t) if self.objective != "ce" else torch.ones_like(t)
        if self.max_weight is not None:
            rate = rate.clamp(max=self.max_weight)
        total, nats = self._scored(batch, noisy, most, rate, t, draws, self.objective == "generalized_kl")
        loss = summed(total, nats, batch.weight, t, rate)
        scored = (noisy if self.source.visible else batch.weight > 0).sum()
        # logged without the weight w, whose variance hides the trend
        loss.metrics["nats_per_scored_token"] = (nats * batch.weight).sum().detach(), scored
        return loss

    def validation_loss(self, batch: Batch, draws: Draws) -> Loss:
        """The bound, with each position corrupted by itself; with a uniform source, without the term of the last draw."""
        nats, t = self._bound_draw(batch, batch.weight > 0, draws)
        return summed((nats * batch.weight).sum(), nats, batch.weight, t)

    @torch.no_grad()
    def bound(self, batch: Batch, draws: Draws) -> Bound:
        """One draw of the bound, at one time for each sequence.

        With a uniform source, the model that is scored jumps up to t = 1 - eps and then draws all positions from its
        posterior. Jumps up to t = 1 would have an infinite bound: wherever the network doubts a token it sees, it pays w.
        """
        scored = batch.scored
        jumps = self._bound_draw(batch, scored, draws)[0].sum(1)
        if self.source.visible:
            return Bound(jumps)
        t = torch.full((len(jumps),), 1 - self.eps, dtype=torch.float64, device=jumps.device)
        noisy = scored & (draws.per_sequence(*scored.shape) >= self.schedule.kappa(t)[:, None])
        counted = Batch(batch.tokens, scored.to(batch.weight), batch.documents)
        last = self._scored(counted, noisy, noisy.numel(), torch.ones_like(t), t, draws, False)[1].sum(1)
        return Bound(jumps + last, {"jumps": jumps, "last_draw": last})

    def context_free_loss(self, token_counts: Tensor, tau: Tensor, draws: Draws) -> Tensor:
        """With masks, the entropy of the unigrams; with a uniform source, their generalized KL, scaled as in `_bound_draw`."""
        p = token_counts.double() / token_counts.sum()
        if self.source.visible:
            return torch.special.entr(p).sum().expand(tau.shape)
        kappa = self.schedule.kappa(tau.double())
        return unigram_generalized_kl(p, kappa) * 2 / (1 - kappa).sqrt() * (1 - self._last_root())

    def denoiser(self) -> TokenDenoiser:
        return TokenDenoiser(self.backbone, self.source, self.schedule)

    def _corrupted(self, batch: Batch, sigma: Tensor, draws: Draws) -> tuple[Batch, Tensor, int]:
        """The batch cut to the part that is trained on, which positions are noise (B, L) bool, and the most there can be.

        That limit is exceeded never, or once in 10^14 batches (`most_masks`). Given positions are never noise. The draws
        depend on a sequence's place in the global batch, not on how that is split. sigma (B,) is on the CPU.
        """
        size, length = batch.tokens.shape
        if self.masking is None:
            noisy = (batch.weight > 0) & (draws.per_sequence(size, length) < draws.moved(sigma)[:, None])
            return batch, noisy, most_masks(sigma, length)
        now = self.masking.at(draws.step)
        u, window_size = draws.points_per_sequence(size, 5), now.window_size(draws.shared_uniform())
        start, end = now.part(length, u[:, :4])
        position, places = torch.arange(length, device="cpu"), draws.points_per_sequence(size, length)
        left, gone = position < start[:, None], position >= end[:, None]

        def masks(maskable: Tensor, sigma: Tensor, places: Tensor, in_windows: Tensor) -> Tensor:
            alone = maskable & (places < sigma[:, None])
            return torch.where(in_windows[:, None], window_masks(maskable, sigma, window_size, places), alone)

        drawn = sigma, places, u[:, 4] < now.windows
        most = masks(~(left | gone), *drawn).sum().tolist()  # an upper limit: given positions and padding only lower it
        is_cut = min(end.tolist()) < length  # rows without padding attend without a mask, which is faster
        left, gone = draws.moved(left), draws.moved(gone)
        documents = batch.documents
        if is_cut:
            documents = torch.zeros_like(batch.tokens) if documents is None else documents
            documents = documents.masked_fill(gone, -1)
        batch = Batch(batch.tokens, batch.weight.masked_fill(left | gone, 0), documents)
        return batch, masks(batch.weight > 0, *map(draws.moved, drawn)), most

    def _bound_draw(self, batch: Batch, counts: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """One draw of the bound over the positions `counts` (B, L) bool: nats of each (B, L), and each sequence's time (B,)."""
        points, places = draws.points(len(counts)), draws.per_sequence(*counts.shape)
        u, most = draws.moved(points), drawn_masks(points, counts.shape[1])
        if self.source.visible:
            noisy, scale, kappa = masks_by_key(counts, u, places)
        else:
            # uniform in the root of 1 - kappa: near kappa = 1 the integrand is nearly always 0 and otherwise large
            last = self._last_root()
            root = 1 - u * (1 - last)
            kappa, scale = 1 - root.square(), 2 / root * (1 - last)
            noisy = counts & (places >= kappa[:, None])
        t = self.schedule.inverse(kappa)
        scored = Batch(batch.tokens, counts.to(batch.weight), batch.documents)
        _, nats = self._scored(scored, noisy, most, torch.ones_like(t), t, draws, True)
        return nats * scale[:, None], t

    def _last_root(self) -> float:
        """The square root of 1 - kappa at t = 1 - eps."""
        return math.sqrt(1 - self.schedule.kappa(torch.tensor(1 - self.eps, dtype=torch.float64, device="cpu")).item())

    def _scored(
        self, batch: Batch, noisy: Tensor, most: int, rate: Tensor, t: Tensor, draws: Draws, kl: bool
    ) -> tuple[Tensor, Tensor]:
        """The loss, differentiable, and the nats of each position (B, L) without the rate, 0 where not scored.

        At most `most` positions are noise. With a uniform source every position of the batch is evaluated.
        """
        noise = self.source.noise(draws.per_sequence(*noisy.shape))
        state = torch.where(noisy, noise, batch.tokens)
        posterior = self.backbone(state, t.float(), batch.documents)
        places = Places(noisy, most) if self.source.visible else Places(batch.weight > 0, noisy.numel())
        posterior = replace(posterior, hidden=places.of(posterior.hidden))
        tokens, weight = places.of(batch.tokens), places.weight(batch.weight * rate[:, None].to(batch.weight))
        if kl and not self.source.visible:
            total, found = generalized_kl(posterior, tokens, places.of(state), weight)
        else:
            total, found = cross_entropy(posterior, tokens, weight)
        return total, places.spread(found.double())
