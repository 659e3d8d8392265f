"""Test-time training: a model goes on learning from held-out text that it has just been scored on.

Score first, train after, chunk by chunk: the learner is handed chunks by `scored_stream`, which has scored them, and
nothing flows back. It works on a copy that nobody else sees, so a text cannot be read twice by a model that knows it.
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
    """How a chunk is learned: SGD, several epochs over the chunk; weights and momentum are never reset.

    Attributes:
        lr: its peak, reached after a twentieth of the chunks; see `rate_factor`.
        momentum: of SGD.
        epochs: over each chunk; 0: none, which is plain scoring.
        batch_sequences: sequences of one window each, per step.
        freeze_blocks: so many blocks next to the input stay as they are.
        grad_clip: on the norm of all gradients; None: none.
        seed: of what the loss draws.
    """

    __test__ = False  # pytest: no test class

    lr: NonNegative = 0.002
    momentum: BelowOne = 0.9
    epochs: Index = 10
    batch_sequences: Count = 32
    freeze_blocks: Index = 2
    grad_clip: Positive | None = 1.0
    seed: int = 1


def rate_factor(chunk: int, num_chunks: int) -> float:
    """Of the peak learning rate: linear up to 1 over the first twentieth of the chunks, then a cosine to 0 at the last."""
    rise = max(num_chunks // 20, 1)
    if chunk < rise:
        return (chunk + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (chunk - rise) / max(num_chunks - 1 - rise, 1)))


class Learners(Sharing, Protocol):
    """Processes that score a chunk together, of which the first learns it; `flm.tasks.processes.Team` is one."""

    @property
    def is_first(self) -> bool: ...

    def from_first(self, value: Any) -> Any:
        """What the first process gives, in all of them."""
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
    """As `scored_stream.score`, with a copy of the algorithm that learns each chunk after its score; the last is not learned.

    `algorithm` itself is left as it is.

    Args:
        sharing: processes that share out the scoring of each chunk. The first alone learns it, and the others go on with its
            weights, so that every number is that of one process to the last digit.

    Raises:
        ValueError: it has fewer blocks than are to be frozen.
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
    """Learns from scored chunks, in the order in which they were scored."""

    def __init__(self, model: Algorithm, reading: Reading, settings: TestTimeTraining, num_chunks: int):
        self.model, self.settings = model.eval(), settings
        self.window, self.num_chunks = reading.window, num_chunks
        self.trained = freeze(model, settings.freeze_blocks)
        self.optimizer = torch.optim.SGD(self.trained, lr=settings.lr, momentum=settings.momentum)

    def is_last(self, chunk: ScoredChunk) -> bool:
        """Nothing is scored after it, so it is not learned."""
        return chunk.index == self.num_chunks - 1

    def learned(self) -> list[Tensor]:
        """The trained weights, on the CPU."""
        return [parameter.detach().cpu() for parameter in self.trained]

    @torch.no_grad()
    def take(self, weights: list[Tensor]) -> None:
        """In the place of its own."""
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
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # dropout is all that draws from it
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
    """The parameters that are trained with so many blocks frozen, which no longer require gradients.

    Raises:
        ValueError: there are not so many blocks.
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
