"""How predictions are shaped before anything is drawn or read from them: the same options for every sampler.

On every posterior, wherever it goes (a draw, an arg-max, the mean that moves a flow), in the order of arXiv 2609.35553 (K.5):

    logits / T(tau)  -  lambda log(1 + count)  ->  top_k  ->  top_p,     T(tau) = T_end + (T - T_end) (1 - tau)^1.5

with `count` how often the token stands in the sequence now. The penalty is one row of V numbers a sequence, added chunk by
chunk. B batch, L length, V vocabulary, N positions.
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
COLDEST = 1e-20  # a lower temperature counts as this: all mass is on the largest logit already, and none overflows
Prediction = TypeVar("Prediction")


class Policy:
    """Base of samplers: the options that all of them have.

    Args:
        temperature: divides the logits; 0: all mass is on the most probable token, no draw is left to chance (and the
            penalty below weighs as at 1).
        temperature_end: the temperature where the text is finished (tau = 1), `temperature` then being that of noise (tau =
            0); between them temperature_end + (temperature - temperature_end) (1 - tau)^1.5. None: the same throughout.
        frequency_penalty: takes frequency_penalty * log(1 + count) nats off the logit of a token that stands `count` times in
            the sequence now, given tokens included; where a state is no tokens, in the most probable ones of the
            prediction before.
        top_k: keep the k most probable tokens; None: all.
        top_p: keep the fewest most probable tokens whose mass, at this temperature and within top_k, reaches this share in
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
        """tau in [0, 1], from noise to text."""
        if self.temperature_end == self.temperature:
            return self.temperature
        return self.temperature_end + (self.temperature - self.temperature_end) * max(0.0, 1 - tau) ** ANNEALING_POWER

    @property
    def is_plain(self) -> bool:
        """Whether predictions are left as they are."""
        untouched = self.temperature == self.temperature_end == 1 and self.top_k is None and self.top_p is None
        return untouched and not self.moves_logits

    @property
    def moves_logits(self) -> bool:
        return self.frequency_penalty > 0 or bool(self.suppress) or bool(self.begin_suppress)


class Shaping:
    """A policy at work on a canvas: knows which tokens stand, and shapes predictions by them."""

    def __init__(self, policy: Policy, canvas: Canvas):
        self.policy, self.canvas = policy, canvas
        self._tokens, self._known = canvas.tokens, ~canvas.editable

    def stands(self, tokens: Tensor, known: Tensor | None = None) -> None:
        """What the sequence is now: tokens (B, L) where `known` (B, L) bool; None: everywhere."""
        self._tokens = tokens
        self._known = torch.ones_like(self.canvas.editable) if known is None else known | ~self.canvas.editable

    def guessed(self, posterior: TokenPosterior) -> None:
        """The same of a state that is no tokens, from the latest prediction (B, L); costs nothing where nobody counts."""
        if self.policy.frequency_penalty > 0:
            self.stands(self.canvas.fill(posterior.argmax()))

    def counts(self, vocab_size: int) -> Tensor:
        """How often each token stands in each sequence, (B, V) float64."""
        tokens, known = self._tokens.clamp(max=vocab_size - 1), self._known.double()  # a mask beyond V is not known
        return torch.zeros(len(tokens), vocab_size, dtype=torch.float64, device=tokens.device).scatter_add_(1, tokens, known)

    def __call__(self, posterior: Prediction, tau: float, at: Tensor | None = None) -> Prediction:
        """A prediction shaped for its moment.

        Args:
            posterior: of all positions (B, L), or of the `at` ones one after the other; under a plain policy anything.
            tau: in [0, 1], from noise to text.
            at: (B, L) bool.
        """
        policy = self.policy
        if policy.is_plain:
            return posterior
        temperature = policy.temperature_at(tau)
        greedy = temperature == 0  # one token is left, by its logit: nothing is divided by zero
        found = posterior if greedy or temperature == 1 else posterior.tempered(max(temperature, COLDEST))
        if policy.moves_logits:
            found = replace(found, offset=self._offset(found, at))
        top_k, top_p = (1, None) if greedy else (policy.top_k, policy.top_p)
        return found if top_k is None and top_p is None else replace(found, top_k=top_k, top_p=top_p)

    def _offset(self, posterior: TokenPosterior, at: Tensor | None) -> "LogitOffset":
        policy, editable, vocab_size = self.policy, self.canvas.editable, posterior.vocab_size
        if policy.frequency_penalty > 0:
            # offsets stand before the temperature, the penalty behind it
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
    """What a policy adds to logits: an `Offset` of N positions.

    Attributes:
        base: what was added before.
        less: (B, V) taken off.
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
