"""DBTM: a map from noise to tokens without time and without a teacher (arXiv 2609.15903).

T(x) = softmax(net(x)) does not depend on the time. With x_t = (1 - t) n + t onehot(y), t ~ U(0, 1) physical, it should be
constant along the flow averaged over time, b(x) = E[onehot(y) - n | x], so b . grad T = 0, and T(onehot(y)) = onehot(y). Then
T maps noise to samples of the data. It is learned at noised positions, with the others of a row kept clean as context:

    transport  w |T - (T + dT)|^2, the bracket constant, dT the derivative of T along onehot(y) - n,  w = (|dT|^2 + c)^-r
    anchor     -log T(x_t)_y where t > t_anchor
    boundary   -log T(onehot(y))_y, at rows without noise

The gradient -2 w <dT, grad T> is linear in dT except for w. So the dT of a single draw of y and n can replace its mean: exactly
if r = 0, and else as long as |dT|^2 is small beside c. It takes one forward-mode derivative per step.

Late in training the map can also learn from its own rounds (`loop_from`). From noise x_0, k rounds write what T is confident
of, reset the rest to x_0, and end in tokens y*. At the open positions of the state before one of them,

    loop       -log T(x_r)_{y*},  r uniform in 0 .. k - 1,

so that one round learns the result of k rounds. y* is a function of x_0, so the noise still determines the tokens.

Not taken from the paper: the coupling of noise and data by optimal transport, which needs the whole state and not its view; the
quality head, for which samplers take T's largest probability; and a copy of T for the rounds. B batch, L length, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Backbone, Batch, Loss
from flm.algos.flow_map_objectives import derivative
from flm.draws import Draws
from flm.few_step.commit_sampler import CommitSampler, committed
from flm.models.attention import DocumentMask, document_mask
from flm.paths.gaussian import State, combine, embed, noise_for, where
from flm.paths.masking import Places, most_masks
from flm.posterior import TokenPosterior
from flm.ranges import Count, Index, OpenShare, Positive, Share
from flm.vocabulary_losses import cross_entropy, of_logits


class TokenMap:
    """T: a backbone that reads one view of the state and no time. It reads given tokens without noise."""

    clean_given = True

    def __init__(self, backbone: nn.Module, mask: DocumentMask | None = None):
        self.backbone = backbone
        self.options = {} if mask is None else {"mask": mask}

    @property
    def tables(self) -> tuple[Tensor, ...]:
        return (self.backbone.input_table,)

    def __call__(self, state: State, tau: Tensor | None = None, tau_to: Tensor | None = None) -> TokenPosterior:
        return self.backbone(state.views[0], **self.options)


class DBTM(Algorithm):
    """The token map.

    Args:
        backbone: called as backbone(vocab_size=V, conditioned=False).
        vocab_size: V.
        length: L.
        t_anchor: physical time above which the anchor loss applies; 0.75 as published.
        boundary_share: share of the rows without noise. In the others half the positions are noised on average, so that 1/3
            weighs boundary and transport equally.
        weight_offset: c.
        weight_power: r; 0: the plain squared difference.
        loop_from: optimiser step from which on the loop loss applies; None: never.
        loop_share: share of the rows that it applies to, in addition to the others.
        loop_rounds: k.
        commit: probability from which a round writes a token at once.
    """

    validation_says = "of a map that is to commit itself: not a likelihood"
    whole_networks = True  # a forward-mode derivative
    samplers = {"": CommitSampler}

    def __init__(
        self,
        backbone: Backbone,
        vocab_size: Count,
        length: Count,
        t_anchor: OpenShare = 0.75,
        boundary_share: OpenShare = 1 / 3,
        weight_offset: Positive = 1.0,
        weight_power: Share = 0.5,
        loop_from: Index | None = None,
        loop_share: Share = 0.25,
        loop_rounds: Count = 4,
        commit: Share = 0.9,
    ):
        super().__init__(vocab_size, length)
        self.backbone = backbone(vocab_size=vocab_size, conditioned=False)
        self.t_anchor, self.boundary_share = t_anchor, boundary_share
        self.weight_offset, self.weight_power = weight_offset, weight_power
        self.loop_from, self.loop_share, self.loop_rounds, self.commit = loop_from, loop_share, loop_rounds, commit

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        size, length = batch.tokens.shape
        is_whole = draws.points(size) < self.boundary_share
        times, share, noisy, state, tangent = self._noised(batch, draws, is_whole)
        t, whole = draws.moved(times), draws.moved(is_whole)
        denoiser = self.denoiser(document_mask(batch.documents))
        posterior = denoiser(state)
        with torch.no_grad():
            _, motion = derivative(lambda view: denoiser(State((view,))), (state.views[0].detach(),), (tangent.detach(),))
        places = Places(noisy, most_masks(share, length))
        squares = along(places.of(motion)[0], self.weight_offset, self.weight_power)
        moved, residual = _at(places, batch.weight, posterior, lambda p, weight: of_logits(p, squares(p), weight))
        told = (whole[:, None] & (batch.weight > 0)) | (noisy & (t > self.t_anchor)[:, None])
        most = most_masks(torch.where(is_whole, 1.0, share * (times > self.t_anchor)), length)
        named, nats = self._cross_entropy(Places(told, most), posterior, batch)
        parts = {
            "transport_residual": (residual, noisy),
            "boundary_nats": (nats, whole[:, None] & told),
            "anchor_nats": (nats, noisy & told),
        }
        total, values = moved + named, residual + nats
        if self.loop_from is not None and draws.step >= self.loop_from:
            learned, found, at = self._loop(batch, draws)
            total, values, parts["loop_nats"] = total + learned, values + found, (found, at)
        loss = Loss(total, (values * batch.weight).sum(1), batch.weight.sum(1))
        for name, (found, at) in parts.items():
            weight = batch.weight * at
            loss.metrics[name] = (found * weight).sum(), weight.sum()
        return loss

    def _loop(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """The loop loss at one of the rounds, its values (B, L), and the positions (B, L) bool where it applies."""
        tables = (self.backbone.input_table,)
        points = draws.points(len(batch.tokens)).tolist()
        rows = draws.moved(torch.tensor([row for row, u in enumerate(points) if u < self.loop_share], dtype=torch.long))
        noise = State((noise_for(tables).sample(*batch.tokens.shape, draws.rows).views[0][rows],))
        this, part = int(self.loop_rounds * draws.shared_uniform()), batch.rows(rows)
        denoiser = self.denoiser(document_mask(part.documents))
        tokens, left = part.tokens, part.weight > 0
        for i in range(self.loop_rounds if len(rows) else 0):
            state = where(left, noise, embed(tokens, tables))
            with torch.no_grad():
                posterior = denoiser(state)
                chosen = posterior.argmax()
                written = committed(posterior, chosen, left, self.loop_rounds - i, self.commit)
            if i == this:
                scored, seen = left, state
            tokens, left = torch.where(written, chosen, tokens), left & ~written
        values, at = torch.zeros_like(batch.weight), torch.zeros_like(batch.given)
        if len(rows) == 0:
            return values.sum(), values, at
        places = Places(scored, scored.numel())  # the number of open positions is not known without the device
        total, nats = _at(places, part.weight, denoiser(seen), lambda p, weight: cross_entropy(p, places.of(tokens), weight))
        return total, values.to(nats).index_copy(0, rows, nats), at.index_copy(0, rows, scored)

    def validation_loss(self, batch: Batch, draws: Draws) -> Loss:
        """-log T(x_t)_y at noised positions, at uniform times."""
        size, length = batch.tokens.shape
        times, share, noisy, state, _ = self._noised(batch, draws, torch.zeros(size, dtype=torch.bool, device="cpu"))
        places = Places(noisy, most_masks(share, length))
        total, nats = self._cross_entropy(places, self.denoiser(document_mask(batch.documents))(state), batch)
        weight = batch.weight * noisy
        return Loss(total, (nats * weight).sum(1), weight.sum(1), draws.moved(times))

    def denoiser(self, mask: DocumentMask | None = None) -> TokenMap:
        return TokenMap(self.backbone, mask)

    def _noised(self, batch: Batch, draws: Draws, whole: Tensor) -> tuple[Tensor, Tensor, Tensor, State, Tensor]:
        """Noises a batch, except the rows `whole` (B,) bool.

        Returns:
            Times t (B,); for each row a uniform probability (B,) of noise at a position, 0 in whole rows; the noised positions
            (B, L) bool; the view of the rows; and its derivative by t (B, L, D). The first two, and `whole`, are on the CPU.
        """
        count = len(batch.tokens)
        times, share = draws.points(count), draws.points(count)
        share = torch.where(whole, 0.0, share)
        noisy = (batch.weight > 0) & (draws.per_sequence(*batch.tokens.shape) < draws.moved(share)[:, None])
        tables, t = (self.backbone.input_table,), draws.moved(times).float()
        clean, noise = embed(batch.tokens, tables), noise_for(tables).sample(*batch.tokens.shape, draws.rows)
        path = combine((t, clean), (1 - t, noise))
        tangent = torch.where(noisy[..., None], clean.views[0] - noise.views[0], 0)
        return times, share, noisy, where(noisy, path, clean), tangent

    def _cross_entropy(self, places: Places, posterior: TokenPosterior, batch: Batch) -> tuple[Tensor, Tensor]:
        return _at(places, batch.weight, posterior, lambda p, weight: cross_entropy(p, places.of(batch.tokens), weight))


def _at(
    places: Places,
    weight: Tensor,
    posterior: TokenPosterior,
    loss: Callable[[TokenPosterior, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """A loss at some positions only: its weighted sum, and its values (B, L), 0 elsewhere."""
    total, found = loss(replace(posterior, hidden=places.of(posterior.hidden)), places.weight(weight))
    return total, places.spread(found)


def along(motion: Tensor, offset: float, power: float) -> Callable:
    """A function from the posterior to the `ValueAndSlope` with value w |dT|^2 and slope -2 w <dT, grad T>.

    Args:
        motion: (N, D) derivative of the hidden states at the posterior's N positions.
        offset, power: w = (|dT|^2 + offset)^-power.
    """

    def of(posterior: TokenPosterior) -> Callable[[slice, Tensor, bool], tuple[Tensor, Tensor | None]]:
        def value_and_slope(part: slice, logits: Tensor, with_slope: bool) -> tuple[Tensor, Tensor | None]:
            change = (motion[part].to(posterior.table.dtype) @ posterior.table.T).to(logits.dtype)
            if posterior.softcap is not None:
                change.mul_(1 - (logits / posterior.softcap).square())
            p = logits.softmax(-1)
            change = p * (change - torch.linalg.vecdot(p, change)[:, None])
            square = torch.linalg.vecdot(change, change)
            weight = (square + offset) ** -power
            if not with_slope:
                return weight * square, None
            upward = -2 * weight[:, None] * change
            return weight * square, p * (upward - torch.linalg.vecdot(p, upward)[:, None])

        return value_and_slope

    return of
