"""Test-time training: a model is trained on held-out text after it has been scored on it.

Each chunk is first scored and then trained on. The learner gets chunks from `scored_stream`, which has already scored them, and
cannot change their scores. It trains a copy that is discarded in the end, so no other score comes from a model that has learned
the text.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flm.algos.algorithm import Algorithm, Batch
from flm.draws import Draws, mix_seed
from flm.golf.numbering import block_of
from flm.golf.scored_stream import Reading, ScoredChunk, score
from flm.likelihood.bits_per_byte import ByteTable, ByteTally
from flm.likelihood.held_out import Sharing
from flm.ranges import BelowOne, Count, Index, NonNegative, Positive


@dataclass(frozen=True)
class TestTimeTraining:
    """Training on a chunk, by several epochs of SGD. Weights and momentum carry over from chunk to chunk.

    Attributes:
        lr: peak learning rate, reached after a twentieth of the chunks; see `rate_factor`.
        momentum: momentum of SGD.
        epochs: epochs over each chunk; 0 is plain scoring.
        batch_sequences: sequences per step, each as long as a window.
        freeze_blocks: number of blocks, from the input on, that are not trained.
        grad_clip: limit on the norm of all gradients together; None: no limit.
        seed: for dropout and the random numbers of the loss.
    """

    __test__ = False  # for pytest, which would take it for a test class

    lr: NonNegative = 0.002
    momentum: BelowOne = 0.9
    epochs: Index = 10
    batch_sequences: Count = 32
    freeze_blocks: Index = 2
    grad_clip: Positive | None = 1.0
    seed: int = 1


def rate_factor(chunk: int, num_chunks: int) -> float:
    """Factor of the peak learning rate: linear up to 1 over the first twentieth of the chunks, then a cosine to 0 at the last.

    Args:
        chunk: number of the chunk, from 0.
    """
    rise = max(num_chunks // 20, 1)
    if chunk < rise:
        return (chunk + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (chunk - rise) / max(num_chunks - 1 - rise, 1)))


class Learners(Sharing, Protocol):
    """Processes that score each chunk together; the first one trains on it. `flm.tasks.processes.Team` has this interface."""

    @property
    def is_first(self) -> bool: ...

    def from_first(self, value: Any) -> Any:
        """Returns the first process's value in all processes."""
        ...


def score_then_train(
    algorithm: Algorithm,
    text: Tensor,
    reading: Reading,
    settings: TestTimeTraining,
    table: ByteTable,
    after: Callable[[ScoredChunk], None] | None = None,
    sharing: Learners | None = None,
) -> ByteTally:
    """As `scored_stream.score`, but trains on each chunk after scoring it, except on the last.

    A copy of `algorithm` is scored and trained; `algorithm` itself does not change.

    Args:
        sharing: processes that share the scoring of each chunk. Only the first trains, and the others take over its weights,
            so all numbers are exactly those of one process. None: one process.

    Raises:
        ValueError: the model has fewer blocks than are to be frozen, or the text has no target.
    """
    learner = _Learner(copy.deepcopy(algorithm), reading, settings, reading.num_chunks(len(text) - 1))

    def learn(chunk: ScoredChunk) -> None:
        if sharing is None or sharing.is_first:
            learner.learn(chunk)
        if sharing is not None and not learner.is_last(chunk):
            learner.take(sharing.from_first(learner.learned() if sharing.is_first else None))
        if after is not None:
            after(chunk)

    return score(learner.model, text, reading, table, learn, sharing, one_after_the_other=True)


class _Learner:
    """Trains a model on scored chunks, in the order in which they were scored."""

    def __init__(self, model: Algorithm, reading: Reading, settings: TestTimeTraining, num_chunks: int):
        self.model, self.settings = model.eval(), settings
        self.window, self.num_chunks = reading.window, num_chunks
        self.trained = freeze(model, settings.freeze_blocks)
        self.optimizer = torch.optim.SGD(self.trained, lr=settings.lr, momentum=settings.momentum)

    def is_last(self, chunk: ScoredChunk) -> bool:
        """Whether this is the last chunk, on which training would be of no use."""
        return chunk.index == self.num_chunks - 1

    def learned(self) -> list[Tensor]:
        """The trained weights, on the CPU."""
        return [parameter.detach().cpu() for parameter in self.trained]

    @torch.no_grad()
    def take(self, weights: list[Tensor]) -> None:
        """Replaces the trained weights by those that `learned` returned in the first process."""
        for parameter, weight in zip(self.trained, weights, strict=True):
            parameter.copy_(weight)

    def learn(self, chunk: ScoredChunk) -> None:
        if self.is_last(chunk):
            return
        device = self.trained[0].device
        rows = chunk.targets.view(-1, self.window).to(device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * rate_factor(chunk.index, self.num_chunks)
        self.model.train()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # only dropout draws from it
            for epoch in range(self.settings.epochs):
                for part, tokens in enumerate(rows.split(self.settings.batch_sequences)):
                    self._step(tokens, mix_seed(self.settings.seed, chunk.index, epoch, part))
        self.model.eval()

    def _step(self, tokens: Tensor, seed: int) -> None:
        torch.manual_seed(seed)
        self.optimizer.zero_grad(set_to_none=True)
        batch = Batch(tokens, torch.ones(tokens.shape, device=tokens.device))
        with torch.enable_grad():
            loss = self.model.loss(batch, Draws(seed, device=tokens.device))
            loss.total.backward()
        if self.settings.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.trained, self.settings.grad_clip)
        self.optimizer.step()


def freeze(model: Algorithm, blocks: int) -> list[torch.nn.Parameter]:
    """Freezes the first `blocks` blocks, whose parameters then require no gradients, and returns the parameters to train.

    Raises:
        ValueError: the model has fewer blocks.
    """
    numbers = {name: block_of(name) for name, _ in model.named_parameters()}
    found = max((number for number in numbers.values() if number is not None), default=-1) + 1
    if blocks > found:
        raise ValueError(f"golf_eval.test_time_training.freeze_blocks={blocks}: the model has {found} blocks")
    trained = []
    for name, parameter in model.named_parameters():
        number = numbers[name]
        if number is not None and number < blocks:
            parameter.requires_grad_(False)
        elif parameter.requires_grad:
            trained.append(parameter)
    return trained
