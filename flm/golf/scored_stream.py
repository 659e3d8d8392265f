"""A long text scored from left to right, chunk by chunk, each target once.

`scored_chunks` yields a chunk only after the model has scored it, and does not score it again. Test-time training gets its text
only from there, so no score can depend on a model that was trained on the same targets. B batch, L window length.
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
    """A model that can be scored on a stream, a torch module with `predictions`."""

    def predictions(self, tokens: Tensor) -> TokenPosterior:
        """The predictions (B, L) of tokens (B, L); the i-th predicts token i from the tokens before it."""
        ...


@dataclass(frozen=True)
class Reading:
    """How a text is divided for scoring.

    The stride divides the window, and the window the chunk, so that the scored part of a window never lies in two chunks.

    Attributes:
        window: L, the largest number of targets in a window. The first target of a window is predicted without context: the
            model reads its start token there, as in training.
        stride: targets from one window's start to the next. Each window but the first scores its last `stride` targets. With
            stride L windows do not overlap.
        chunk: number of targets that are scored before they are yielded.
        batch: number of windows evaluated together.

    Raises:
        ValueError: a number is below 1, the stride does not divide the window, or the window does not divide the chunk.
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
        """Number of chunks of `total` targets; the last chunk may be shorter."""
        return math.ceil(total / self.chunk)


@dataclass(frozen=True)
class ScoredChunk:
    """Consecutive targets that have been scored.

    Attributes:
        index: number of the chunk, from 0.
        targets: (n,), int64 token ids; n is `Reading.chunk`, or less in the last chunk.
        previous: (n,), int64, the token before each target.
        nats: (n,), float64 on the CPU, -log p of each target.
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
    """Scores the chunks of a text in order, each only when the iterator reaches it.

    Args:
        text: (N + 1,) token ids on any device, N >= 1; the first is given, and the others are the targets.
        wanted: numbers of the chunks to score; None: all.
        sharing: processes that share the batches of each chunk. The batches are the same as with one process, and every
            process gets all scores. None: one process.

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
    """Batches of at most `size` windows of one shape. The first and the last windows of a text may differ from the others."""
    for _, alike in groupby(group, key=lambda window: (len(window), window.first_scored)):
        while batch := list(islice(alike, size)):
            yield batch


@torch.no_grad()  # not inference mode, because tables that a model builds here and keeps must also work in training
def _nats(model: NextTokenModel, text: Tensor, batch: list[Window]) -> list[Tensor]:
    """-log p of the scored targets of each window, float64 on the CPU. All windows have the same shape."""
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
        text: see `scored_chunks`.
        after: called with each chunk that this process scores, after it is counted and before the next is scored.
        sharing: processes that share the chunks; each returns the sums over all. None: one process.
        one_after_the_other: the processes share the batches of each chunk instead, and each calls `after` with every chunk.

    Raises:
        ValueError: the text has no target.
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
