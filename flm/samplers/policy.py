"""Options that shape predictions before anything is drawn or read from them, the same for every sampler.

They apply to every posterior, whether for a draw, an arg-max or the mean that moves a flow, in the order of arXiv 2609.35553
(K.5):

    logits / T(tau)  -  lambda log(1 + count)  ->  top_k  ->  top_p,     T(tau) = T_end + (T - T_end) (1 - tau)^1.5

where `count` is how often the token is in the sequence now. The penalty is V numbers for each sequence, added chunk by chunk.
B batch, L length, V vocabulary, N positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from flm.posterior import Offset, TokenPosterior
from flm.ranges import Bounded, Count, PositiveShare, TokenId
from flm.samplers.canvas import Canvas

ANNEALING_POWER = 1.5
COLDEST = 1e-20  # lowest temperature: all mass is on the largest logit already, and nothing overflows
Prediction = TypeVar("Prediction")


class Policy:
    """Base of samplers: the options that all of them have.

    Args:
        temperature: divides the logits; 0: the most probable token has all mass, and the penalty below counts as at 1.
        temperature_end: the temperature at tau = 1, where `temperature` is that at tau = 0; in between it is temperature_end +
            (temperature - temperature_end) (1 - tau)^1.5. None: `temperature` throughout.
        frequency_penalty: frequency_penalty * log(1 + count) nats are subtracted from the logit of a token that is in the
            sequence `count` times, given tokens included. Where a state has no tokens, the arg-max of the last prediction
            is counted.
        top_k: keep the k most probable tokens; None: all.
        top_p: of these, keep the fewest most probable ones whose share of the mass, at this temperature, reaches top_p in
            (0, 1]; None: all.
        suppress: ids that are never drawn.
        begin_suppress: ids that are not drawn at the first position of a hole.
    """

    def __init__(
        self,
        temperature: Bounded = 1.0,
        temperature_end: Bounded | None = None,
        frequency_penalty: Bounded = 0.0,
        top_k: Count | None = None,
        top_p: PositiveShare | None = None,
        suppress: Sequence[TokenId] = (),
        begin_suppress: Sequence[TokenId] = (),
    ):
        self.temperature, self.temperature_end = temperature, temperature if temperature_end is None else temperature_end
        self.frequency_penalty, self.top_k, self.top_p = frequency_penalty, top_k, top_p
        self.suppress, self.begin_suppress = tuple(suppress), tuple(begin_suppress)

    def temperature_at(self, tau: float) -> float:
        """The temperature at tau in [0, 1], from noise to text."""
        if self.temperature_end == self.temperature:
            return self.temperature
        return self.temperature_end + (self.temperature - self.temperature_end) * max(0.0, 1 - tau) ** ANNEALING_POWER

    @property
    def is_plain(self) -> bool:
        """Whether predictions are not changed at all."""
        untouched = self.temperature == self.temperature_end == 1 and self.top_k is None and self.top_p is None
        return untouched and not self.moves_logits

    @property
    def moves_logits(self) -> bool:
        return self.frequency_penalty > 0 or bool(self.suppress) or bool(self.begin_suppress)


class Shaping:
    """A policy applied to a canvas: tracks the tokens of the sequences, and shapes predictions."""

    def __init__(self, policy: Policy, canvas: Canvas):
        self.policy, self.canvas = policy, canvas
        self._tokens, self._known = canvas.tokens, ~canvas.editable

    def stands(self, tokens: Tensor, known: Tensor | None = None) -> None:
        """Sets the current tokens (B, L), which count where `known` (B, L) bool; None: everywhere."""
        self._tokens = tokens
        self._known = torch.ones_like(self.canvas.editable) if known is None else known | ~self.canvas.editable

    def guessed(self, posterior: TokenPosterior) -> None:
        """Sets the current tokens to the arg-max of a prediction (B, L), for states without tokens, if they are counted."""
        if self.policy.frequency_penalty > 0:
            self.stands(self.canvas.fill(posterior.argmax()))

    def counts(self, vocab_size: int) -> Tensor:
        """How often each token is in each sequence, (B, V) float64."""
        tokens, known = self._tokens.clamp(max=vocab_size - 1), self._known.double()  # masks, beyond V, are not known
        return torch.zeros(len(tokens), vocab_size, dtype=torch.float64, device=tokens.device).scatter_add_(1, tokens, known)

    def __call__(self, posterior: Prediction, tau: float, at: Tensor | None = None) -> Prediction:
        """The prediction, shaped.

        Args:
            posterior: of all positions (B, L), or of the positions `at`, in order; with a plain policy, any object.
            tau: in [0, 1], from noise to text.
            at: (B, L) bool; None: all.
        """
        policy = self.policy
        if policy.is_plain:
            return posterior
        temperature = policy.temperature_at(tau)
        greedy = temperature == 0  # top_k = 1 then, so nothing is divided by zero
        found = posterior if greedy or temperature == 1 else posterior.tempered(max(temperature, COLDEST))
        if policy.moves_logits:
            found = replace(found, offset=self._offset(found, at))
        top_k, top_p = (1, None) if greedy else (policy.top_k, policy.top_p)
        return found if top_k is None and top_p is None else replace(found, top_k=top_k, top_p=top_p)

    def _offset(self, posterior: TokenPosterior, at: Tensor | None) -> "LogitOffset":
        policy, editable, vocab_size = self.policy, self.canvas.editable, posterior.vocab_size
        if policy.frequency_penalty > 0:
            # an offset is divided by the temperature, the penalty must not be
            less = self.counts(vocab_size).log1p() * (policy.frequency_penalty * posterior.temperature)
        else:
            less = torch.zeros(len(editable), vocab_size, dtype=torch.float64, device=editable.device)
        less[:, list(policy.suppress)] = torch.inf
        less = less.to(torch.promote_types(posterior.table.dtype, torch.float32))
        at = torch.ones_like(editable) if at is None else at
        begins = None
        if policy.begin_suppress:
            begins = editable.clone()
            begins[:, 1:] &= ~editable[:, :-1]
            begins = begins[at]
        return LogitOffset(posterior.offset, less, at.nonzero()[:, 0], begins, policy.begin_suppress)


@dataclass(frozen=True)
class LogitOffset:
    """The `Offset` that a policy adds to the logits of N positions.

    Attributes:
        base: an offset that is added too; None: none.
        less: (B, V) subtracted.
        rows: (N,) the sequence of each position.
        begins: (N,) bool, where the tokens `forbidden` are impossible; None: nowhere.
    """

    base: Offset | None
    less: Tensor
    rows: Tensor
    begins: Tensor | None = None
    forbidden: tuple[int, ...] = ()

    def chunk(self, part: slice) -> Tensor:
        found = self.less[self.rows[part]].neg_()
        if self.begins is not None:
            first = self.begins[part].nonzero()
            found[first, torch.tensor(self.forbidden, device=found.device)] = -torch.inf
        return found if self.base is None else found.add_(self.base.chunk(part))
