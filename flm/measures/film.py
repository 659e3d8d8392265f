"""A film strip: one generation at a few moments, each with its tokens and their probabilities under the model.

L length, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flm.data.tokenizers import Tokenizer
from flm.posterior import chunks
from flm.samplers.flow import Moment

_MOST_BYTES = 4  # of a character in UTF-8, each a token at worst
NO_WIDTH = "\N{WORD JOINER}"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # decoded from a part of a character


@dataclass(frozen=True)
class Frame:
    """One moment of one sample.

    Attributes:
        index: round of network evaluation, from 0.
        tau: clock time, in [0, 1].
        tokens: (L,) given ids, and those that the sampler would return now; None: not written yet.
        probability: (L,) of each token under the model; 1 for given ones, 0 for those not written yet.
        given: (L,) whether the position was given.
    """

    index: int
    tau: float
    tokens: list[int | None]
    probability: list[float]
    given: list[bool]

    def to_dict(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """Plain JSON values, tokens as text; "" for one not written yet."""
        shown = ["" if text is None else text for text in spellings(self.tokens, tokenizer)]
        return {"index": self.index, "tau": self.tau, "tokens": shown, "probability": self.probability, "given": self.given}


@dataclass
class FilmStrip:
    """Keeps at most `count` moments of a sampler, evenly spaced, the last included; give it to a sampler as `on_step`.

    It shows the first sequence of the batch. With a sampler that writes one position at a time (its posterior is (B, 1)), each
    token keeps the probability with which it was written.
    """

    count: int = 12
    frames: list[Frame] = field(default_factory=list)
    _written: dict[int, float] = field(default_factory=dict)

    def __call__(self, moment: Moment) -> None:
        length = moment.canvas.tokens.shape[1]
        one_position = moment.posterior.shape[1] == 1 < length
        if one_position:  # every moment adds a token, whether or not its frame is kept
            column = round(moment.tau * length)  # there tau is the share of positions written before
            token = moment.tokens()[:1, column : column + 1]
            self._written[column] = shown_probability(moment.posterior, token).item()
        again = bool(self.frames) and moment.index <= self.frames[-1].index  # the sampler makes a further candidate
        if again or moment.index not in kept_moments(moment.steps, self.count):
            return
        tokens, editable = moment.tokens()[:1], moment.canvas.editable[0].tolist()
        if one_position:
            known = [not free or i in self._written for i, free in enumerate(editable)]
            probability = [self._written.get(i, 0.0) for i in range(length)]
        else:
            known, probability = [True] * length, shown_probability(moment.posterior, tokens).tolist()
        self.frames.append(
            Frame(
                moment.index,
                moment.tau,
                [token if seen else None for token, seen in zip(tokens[0].tolist(), known, strict=True)],
                [p if free else 1.0 for p, free in zip(probability, editable, strict=True)],
                [not free for free in editable],
            )
        )


def kept_moments(steps: int, count: int) -> set[int]:
    """At most `count` of the indices 0 .. steps - 1, evenly spaced; the last one always, the first if count > 1."""
    if count >= steps:
        return set(range(steps))
    return {round(steps - 1 - i * (steps - 1) / max(1, count - 1)) for i in range(count)}


@torch.no_grad()
def shown_probability(posterior: Any, tokens: Tensor) -> Tensor:
    """Probability (L,) of tokens (1, L) in the prediction for the first sequence, in [0, 1].

    The prediction is any `flm.outputs.Output`; values outside [0, 1], which an added correction can cause, are clamped.
    """
    first = posterior.rows(slice(0, 1))
    flat = tokens.reshape(-1)
    pieces = [
        first.chunk(part).gather(1, flat[part, None])[:, 0] for part in chunks(len(flat), first.vocab_size, tokens.device)
    ]
    return torch.cat(pieces).float().clamp(0, 1)


def spelling(token: int, tokenizer: Tokenizer) -> str:
    """The text of one token; its vocabulary entry if it is only part of a character or has no text."""
    text = tokenizer.decode([token])
    return text if text and REPLACEMENT not in text else tokenizer.token(token)


def spellings(tokens: Sequence[int | None], tokenizer: Tokenizer) -> list[str | None]:
    """Tokens as people read them; None where there is none. A character in several tokens stands at the first of them, and
    at the others a mark of no width."""
    found = [None if token is None else spelling(token, tokenizer) for token in tokens]
    start = 0
    while start < len(tokens):
        ids: list[int] = []
        for token in tokens[start : start + _MOST_BYTES]:
            if token is None:
                break
            ids.append(token)
            text = tokenizer.decode(ids)
            if text and REPLACEMENT not in text:
                if len(ids) > 1:
                    found[start : start + len(ids)] = [text, *[NO_WIDTH] * (len(ids) - 1)]
                    start += len(ids) - 1
                break
        start += 1
    return found
