"""A long text scored from left to right, chunk by chunk, each target once.

What comes out of `scored_chunks` has been scored, by the model as it stood then, and will not be again. Whoever wants to
train on held-out text is handed nothing else, so that no score can depend on what it scores. B batch, L window length.
"""

import math
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Protocol

import torch
from torch import Tensor

from flm.golf.sliding_window import Window, windows
from flm.likelihood.bits_per_byte import ByteTable, ByteTally
from flm.likelihood.held_out import Sharing
from flm.posterior import TokenPosterior


class NextTokenModel(Protocol):
    """What can be scored so: the predictions (B, L) of tokens (B, L), the i-th of token i from those before it."""

    def predictions(self, tokens: Tensor) -> TokenPosterior: ...


@dataclass(frozen=True)
class Reading:
    """How a text is read.

    Attributes:
        window: L, the most targets that one call of the model sees. Its first target is predicted from no other: the model
            reads its own start there, as in training.
        stride: from one window's start to the next; each but the first scores its last `stride` targets. L: no overlap.
        chunk: targets that are scored before any is handed out.
        batch: windows evaluated together.

    Raises:
        ValueError: the stride does not divide the window, or the window the chunk: then no scored part straddles two chunks.
    """

    window: int
    stride: int
    chunk: int
    batch: int = 32

    def __post_init__(self) -> None:
        for name in ("window", "stride", "chunk", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"golf_eval: {name} must be at least 1, not {getattr(self, name)}")
        if self.window % self.stride or self.chunk % self.window:
            raise ValueError(
                f"golf_eval: the stride ({self.stride}) must divide the window ({self.window}), and that the chunk "
                f"({self.chunk})"
            )

    def num_chunks(self, total: int) -> int:
        """Of `total` targets; the last chunk may be shorter."""
        return math.ceil(total / self.chunk)


@dataclass(frozen=True)
class ScoredChunk:
    """Consecutive targets that have been scored.

    Attributes:
        index: number of the chunk, from 0.
        targets: (n,) int64, the reading's chunk of them, or fewer in the last.
        previous: (n,) the token before each.
        nats: (n,) float64, -log p of each.
    """

    index: int
    targets: Tensor
    previous: Tensor
    nats: Tensor


def scored_chunks(
    model: NextTokenModel,
    text: Tensor,
    reading: Reading,
    wanted: Container[int] | None = None,
    sharing: Sharing | None = None,
) -> Iterator[ScoredChunk]:
    """Scores the chunks of a text one after the other, each when it is asked for.

    Args:
        text: (N + 1,) token ids on any device, N >= 1; the first is given, and the others are the targets.
        wanted: numbers of the chunks to score; None: all.
        sharing: processes that share out the batches of each chunk, which are those of one process; each has all scores.

    Raises:
        ValueError: the text has no target.
    """
    total = len(text) - 1
    if total < 1:
        raise ValueError("the held-out text has no token to score")
    ahead = windows(total, reading.window, reading.stride)
    for index, group in groupby(ahead, key=lambda window: window.scored_from // reading.chunk):
        if wanted is not None and index not in wanted:
            continue
        batches = list(_batches(group, reading.batch))
        mine = range(len(batches)) if sharing is None else sharing.share(len(batches))
        found = [_nats(model, text, batches[number]) for number in mine]
        nats = [part for parts in (found if sharing is None else sharing.all_of(found)) for part in parts]
        start = index * reading.chunk
        end = min(start + reading.chunk, total)
        yield ScoredChunk(index, text[start + 1 : end + 1].long(), text[start:end].long(), torch.cat(nats))


def _batches(group: Iterator[Window], size: int) -> Iterator[list[Window]]:
    """Windows of one shape together: the first of a text and its last may differ from the others."""
    for _, alike in groupby(group, key=lambda window: (len(window), window.first_scored)):
        while batch := list(islice(alike, size)):
            yield batch


@torch.no_grad()  # and not inference mode: tables that a model makes on the way and keeps must serve training too
def _nats(model: NextTokenModel, text: Tensor, batch: list[Window]) -> list[Tensor]:
    """float64 on the CPU, of each window's scored targets."""
    device = next(model.parameters()).device
    rows = torch.stack([text[window.start + 1 : window.end + 1] for window in batch]).long().to(device)
    posterior, first = model.predictions(rows), batch[0].first_scored
    scored = replace(posterior, hidden=posterior.hidden[:, first:])
    return list((-scored.log_prob(rows[:, first:])).double().cpu().unbind(0))


def score(
    model: NextTokenModel,
    text: Tensor,
    reading: Reading,
    table: ByteTable,
    after: Callable[[ScoredChunk], None] | None = None,
    sharing: Sharing | None = None,
    one_after_the_other: bool = False,
) -> ByteTally:
    """Nats, tokens and bytes of all targets.

    Args:
        after: called with each chunk once it has been counted and before the next is scored.
        sharing: processes that share the chunks out; each has the sums of all.
        one_after_the_other: that they share out each chunk instead, and call `after` with every one.
    """
    apart = sharing is not None and not one_after_the_other
    wanted = sharing.share(reading.num_chunks(len(text) - 1)) if apart else None
    sums = []
    for chunk in scored_chunks(model, text, reading, wanted, None if apart else sharing):
        tally = ByteTally(table)
        tally.add(chunk.nats, chunk.targets, chunk.previous)
        sums.append(tally.sums)
        if after is not None:
            after(chunk)
    whole = ByteTally(table)
    for part in sharing.all_of(sums) if apart else sums:
        whole.sums += part
    return whole
