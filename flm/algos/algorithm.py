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

# A network's class, like `DiT`, with all arguments bound but those named here, which the algorithm passes.
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
        numbers: (B,) int64, index of each sequence in its split, by which validation keys its noise. None: unknown.
        padding: (B, L) bool, targets that only fill up a row: the model learns to write them, but they are no text.
            None: there are none.
    """

    tokens: Tensor
    weight: Tensor
    documents: Tensor | None = None
    numbers: Tensor | None = None
    padding: Tensor | None = None

    @property
    def given(self) -> Tensor:
        """(B, L) bool, tokens that the model reads and need not predict: a prompt, the text around a hole."""
        given = self.weight == 0
        return given if self.documents is None else given & (self.documents >= 0)

    @property
    def scored(self) -> Tensor:
        """(B, L) bool, tokens whose likelihood is measured: all but given tokens and padding without weight."""
        scored = self.weight > 0
        return scored if self.documents is None else scored & (self.documents >= 0)

    @property
    def counted(self) -> Tensor:
        """(B, L) bool, scored tokens of the text itself; nats are divided by their number."""
        return self.scored if self.padding is None else self.scored & ~self.padding

    def rows(self, index: Tensor, counted: Tensor | None = None) -> "Batch":
        """The sequences at index (n,); those where counted (n,) is 0 lose their weight."""
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

    The loss of the step is the sum of `sum` over all micro-batches and processes, divided by the sum of `count`. So it does
    not depend on how the global batch is cut. An algorithm of several terms weighs them so that one count serves all.

    Attributes:
        sum: differentiable scalar.
        sums: (B,) detached, the loss of each sequence without learned weights.
        counts: (B,) detached, what `sums` is divided by for a mean; usually the number of targets.
        tau: (B,) clock time of each sequence in [0, 1]; None if the algorithm has no clock.
        metrics: detached (sum, count) of what is logged beside the loss. All micro-batches of a step have the same names.
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
        nats: (B,) summed over each sequence's scored positions; the mean over draws is the bound (or the exact value).
        parts: (B,) nats of each named term, which add up to `nats`; empty if the terms are not told apart.
    """

    nats: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class BoundVariant:
    """One of several valid bounds of the same model.

    Attributes:
        options: keyword arguments of `bound`.
        expected: nats per token on training text; None if it was not measured.
        table: the measurements on training text, plain values for a result file.
    """

    options: dict[str, Any] = field(default_factory=dict)
    expected: float | None = None
    table: list[dict[str, float]] = field(default_factory=list)


class Sampler(Protocol):
    """Fills a canvas and returns its tokens (B, L). Calls on_step(index, tokens), if given, after each step."""

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
        validation_says: what the mean of `validation_loss` over the clock says about -log p(text), in words for a table.
        bound_kind: what `bound` gives, "exact" (one draw is enough) or the kind of upper bound; None: it has no bound.
        scored_by: the mode that scores its models where `bound_kind` is None; None: no mode does.
        whole_networks: whether the loss needs all parameters of a network at once, as transforms of torch.func do, and not
            block by block. A strategy that splits parameters over processes asks.
        samplers: sampler classes by the name that the option `solver` takes; the first is the default. The name is "" if
            there is only one and no choice.
        networks_are_split: whether parameters are split over processes, so that all must call networks equally often; set by
            the training module.
        averaged_weights: running average of the trained parameters by name, kept by the training module; None: no average.
        context_free_has_weights: whether `context_free_loss` depends on trained weights.
    """

    validation_metric = "denoising_ce_nats"
    validation_says = "over noise levels: not a likelihood"
    bound_kind: str | None = None
    scored_by: str | None = None
    averaged_weights: Mapping[str, Tensor] | None = None
    whole_networks = False
    samplers: Mapping[str, Callable[..., Sampler]] = {}
    networks_are_split = False
    context_free_has_weights = False

    def __init__(self, vocab_size: int, length: int):
        super().__init__()
        self.vocab_size, self.length = vocab_size, length

    def know_frequencies(self, token_counts: Tensor) -> None:
        """Called once before training with the unigram counts (V,) of the training text. Keep them, if at all, in a buffer."""

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        raise NotImplementedError

    def check_ready(self) -> None:
        """Called before training. Raises ValueError if something that `loss` needs was not given."""

    @property
    def advice(self) -> str | None:
        """One line for a user about to train: a setting known to do badly, and a better one. None: no advice."""
        return None

    def resting(self, step: int) -> Iterator[nn.Parameter]:
        """Parameters that must not change at optimiser step `step`, where networks of one algorithm learn in turn.

        The step's loss does not depend on them. The training module keeps momentum and weight decay from moving them.
        """
        return iter(())

    def every_module(self) -> Iterator[nn.Module]:
        """`modules()`, and the modules of its teachers, which `modules()` leaves out."""
        return self.modules()

    def validation_loss(self, batch: Batch, draws: Draws) -> Loss:
        """The loss that validation reports, named by `validation_metric`; the training loss unless overridden."""
        return self.loss(batch, draws)

    def denoiser(self) -> Any:
        """The object that samplers of this algorithm call for predictions."""
        raise NotImplementedError

    def sampler(self, **options: Any) -> Sampler:
        """The sampler named by the option `solver`, built with the other options.

        The options must fit its signature; `flm.samplers.options.sampler_for` checks that first.
        """
        if "" in self.samplers:
            return self.samplers[""](**options)
        return self.samplers[options.pop("solver", next(iter(self.samplers)))](**options)

    def context_free_loss(self, token_counts: Tensor, tau: Tensor, draws: Draws) -> Tensor | None:
        """Nats per token, at each tau, of the best decoder that sees only a position's own noised token; (len(tau),).

        A trained model that is not below this has learned nothing from context. token_counts (V,) are the unigram counts of
        the corpus. None: the algorithm has no such baseline.
        """
        return None

    def bound(self, batch: Batch, draws: Draws, **options: Any) -> Bound:
        """One draw of -log p(scored tokens | given ones) or an upper bound on it; `bound_kind` says which."""
        raise NotImplementedError

    def bound_variants(self, training: Sequence[Batch], draws: Draws, **options: Any) -> dict[str, BoundVariant]:
        """The bounds to report, by name. Their free choices may be fitted on the training batches, if there are any."""
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
