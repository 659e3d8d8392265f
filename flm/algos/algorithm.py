"""What an algorithm is: a training loss, and a denoiser that samplers may ask.

An algorithm is one file. It knows nothing of Lightning, Hydra or files; `training.Module` trains it, `tasks` build it
from a config. B batch, L length, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor, nn

from flm.draws import Draws
from flm.ranges import CalledWith
from flm.samplers.canvas import Canvas

# What an algorithm makes its networks of: a class like `DiT` with all of its arguments but those named here, which follow from
# the algorithm.
Backbone = Annotated[Callable[..., nn.Module], CalledWith.of("vocab_size", "two_times", "conditioned")]
MaybeTimedBackbone = Annotated[Callable[..., nn.Module], CalledWith.of("vocab_size", "two_times")]
LeftToRightBackbone = Annotated[Callable[..., nn.Module], CalledWith.of("vocab_size", "causal", "conditioned")]


@dataclass
class Batch:
    """Sequences to learn from.

    Attributes:
        tokens: (B, L) int64.
        weight: (B, L) float: 0 on padding and given tokens, else 1.
        documents: (B, L) int64, positions of a row that belong together, -1 on padding; attention crosses no boundary.
            None: every row is one whole document.
        numbers: (B,) int64, which example of its split each sequence is, for who draws noise for it. None: nobody says.
        padding: (B, L) bool, targets that only fill a row up: the model is to write them, and they are no text. None: none.
    """

    tokens: Tensor
    weight: Tensor
    documents: Tensor | None = None
    numbers: Tensor | None = None
    padding: Tensor | None = None

    @property
    def given(self) -> Tensor:
        """(B, L) bool, what a model reads as it is and need not predict: a prompt, the text around a hole."""
        given = self.weight == 0
        return given if self.documents is None else given & (self.documents >= 0)

    @property
    def scored(self) -> Tensor:
        """(B, L) bool, what a likelihood is of. What is given conditions it; padding without weight is not there."""
        scored = self.weight > 0
        return scored if self.documents is None else scored & (self.documents >= 0)

    @property
    def counted(self) -> Tensor:
        """(B, L) bool, what nats are divided by: scored tokens of the text."""
        return self.scored if self.padding is None else self.scored & ~self.padding

    def rows(self, index: Tensor, counted: Tensor | None = None) -> "Batch":
        """Some of its sequences, as index (n,) says; where counted (n,) is 0, without weight."""
        batch = self._each(lambda tensor: tensor[index])
        return batch if counted is None else replace(batch, weight=batch.weight * counted.to(batch.weight)[:, None])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {name: None if tensor is None else change(tensor) for name, tensor in vars(self).items()}
        return Batch(**changed)


@dataclass
class Loss:
    """What one micro-batch adds to the loss of an optimiser step, as sums and counts, never means.

    That loss is the sum of `sum` over all micro-batches and processes divided by the sum of `count`, however the global batch
    is cut: the training module divides. An algorithm of several terms weighs them so that one count serves all.

    Attributes:
        sum: differentiable scalar.
        sums: (B,) detached, what each sequence has of a loss that no learned weight scales.
        counts: (B,) detached, how much of each sequence counts, as a rule its number of targets.
        tau: (B,) where on the clock each sequence stood, in [0, 1]; None if the algorithm has no clock.
        metrics: detached (sum, count) of what is logged beside the loss. All shares of a global batch have the same names.
    """

    sum: Tensor
    sums: Tensor
    counts: Tensor
    tau: Tensor | None = None
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def count(self) -> Tensor:
        return self.counts.sum()

    @property
    def total(self) -> Tensor:
        """The loss of this micro-batch alone, differentiable; 0 where nothing counts."""
        return self.sum / over(self.count)

    @property
    def per_sequence(self) -> Tensor:
        """(B,) the loss of each sequence alone; 0 where nothing of it counts."""
        return self.sums / over(self.counts)

    def mean(self, metric: str) -> Tensor:
        """A metric of this micro-batch alone."""
        total, count = self.metrics[metric]
        return total / over(count)


def over(count: Tensor) -> Tensor:
    """A count to divide by: 1 where nothing counts, since the sum is 0 there."""
    return torch.where(count > 0, count, torch.ones_like(count))


@dataclass
class Bound:
    """What one draw says about -log p(tokens).

    Attributes:
        nats: (B,) of each sequence's scored positions together: its mean over draws is the bound (or the exact value).
        parts: where the nats come from: (B,) by name, adding up to `nats`; empty where nothing is told apart.
    """

    nats: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class BoundVariant:
    """One of several valid bounds of the same model.

    Attributes:
        options: keyword arguments of `bound`.
        expected: nats per token it gave on training text; None if nothing was measured.
        table: what was measured there, in plain values for a result file.
    """

    options: dict[str, Any] = field(default_factory=dict)
    expected: float | None = None
    table: list[dict[str, float]] = field(default_factory=list)


class Sampler(Protocol):
    """Fills a canvas: returns tokens (B, L); calls on_step(index, tokens) after each network evaluation round if given."""

    def __call__(
        self,
        denoiser: Any,
        canvas: Canvas,
        steps: int,
        generator: torch.Generator,
        on_step: Callable[..., None] | None = None,
    ) -> Tensor: ...


class Algorithm(nn.Module):
    """Base of all algorithms.

    Args:
        vocab_size: V, number of token ids the data uses.
        length: L, positions of a training sequence and of a sample unless asked otherwise.

    Attributes:
        validation_metric: name, with unit, of what `validation_loss` measures per token.
        validation_says: what its mean over the clock tells of -log p(text), for who reads a validation's table.
        bound_kind: what `bound` gives, "exact" (one draw says all) or the sort of upper bound; None: it has none.
        scored_by: the mode that bounds what it can bound, where `bound_kind` is None; None: no mode does.
        whole_networks: whether the loss needs the parameters of its networks whole throughout, not only while a block is
            called, as transforms of torch.func do; asked by a strategy that splits parameters over processes.
        samplers: what generates, by its name as the option `solver`, the first by default; "" where there is one alone.
        networks_are_split: whether parameters are split over processes, so that all must call networks equally often; set by
            the training module.
        averaged_weights: running average of the trained parameters by name, kept by the training module; None if none is.
    """

    validation_metric = "denoising_ce_nats"
    validation_says = "over noise levels: not a likelihood"
    bound_kind: str | None = None
    scored_by: str | None = None
    averaged_weights: Mapping[str, Tensor] | None = None
    whole_networks = False
    samplers: Mapping[str, Callable[..., Sampler]] = {}
    networks_are_split = False

    def __init__(self, vocab_size: int, length: int):
        super().__init__()
        self.vocab_size, self.length = vocab_size, length

    def know_frequencies(self, token_counts: Tensor) -> None:
        """Called once before training with the unigram counts (V,) of the training text; what is kept of them is a buffer."""

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        raise NotImplementedError

    def check_ready(self) -> None:
        """Raises ValueError for what `loss` needs and nobody gave; asked before anything is trained."""

    @property
    def advice(self) -> str | None:
        """A line for whoever is about to train it: what of its settings is known to do badly, and what does better."""
        return None

    def resting(self, step: int) -> Iterator[nn.Parameter]:
        """Trained parameters that optimiser step `step` leaves as they are, where networks of one algorithm learn in turn.

        The step's loss does not depend on them. Whoever trains sees to it that neither momentum nor decay moves them.
        """
        return iter(())

    def every_module(self) -> Iterator[nn.Module]:
        """Its modules, and those of the models it learns from, which `modules` leaves out."""
        return self.modules()

    def validation_loss(self, batch: Batch, draws: Draws) -> Loss:
        """What validation reports, in the unit `validation_metric` names; the training loss unless overridden."""
        return self.loss(batch, draws)

    def denoiser(self) -> Any:
        """What a sampler of this algorithm asks for predictions."""
        raise NotImplementedError

    def sampler(self, **options: Any) -> Sampler:
        """A sampler with options that fit its signature; `flm.samplers.options.sampler_for` checks them first."""
        if "" in self.samplers:
            return self.samplers[""](**options)
        return self.samplers[options.pop("solver", next(iter(self.samplers)))](**options)

    context_free_has_weights = False  # whether what it gives depends on weights, and changes with them

    def context_free_loss(self, token_counts: Tensor, tau: Tensor, draws: Draws) -> Tensor | None:
        """Nats per token of the best decoder that sees only a position's own noised token, at each tau; (len(tau),).

        token_counts (V,) are the unigram counts of the corpus. None where the notion does not apply. A trained model
        that is not below it has learned nothing from context.
        """
        return None

    def bound(self, batch: Batch, draws: Draws, **options: Any) -> Bound:
        """One draw of -log p(scored tokens | given ones) or an upper bound on it; `bound_kind` says which."""
        raise NotImplementedError

    def bound_variants(self, training: Sequence[Batch], draws: Draws, **options: Any) -> dict[str, BoundVariant]:
        """The bounds to report, by name. What they leave free may be chosen on the training batches; there may be none."""
        return {"model": BoundVariant()}

    @torch.no_grad()
    def generate(
        self,
        canvas: Canvas,
        steps: int,
        generator: torch.Generator,
        on_step: Callable[..., None] | None = None,
        **options: Any,
    ) -> Tensor:
        """Tokens (B, L) for a canvas in `steps` steps; positions the canvas fixes come back unchanged."""
        return self.sampler(**options)(self.denoiser(), canvas, steps, generator, on_step)
