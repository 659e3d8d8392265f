"""Samplers of discrete paths, which write tokens over noise at the editable positions of a canvas, in any order.

When a position is written does not depend on the prediction. So the network is evaluated only at steps, and on sequences, where
something is written. This saves as much as caching unchanged states (arXiv 2406.07524), and is exact even for a network
conditioned on the time. B batch, L length, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, Literal, Protocol

import torch
from torch import Tensor

from flm.paths.mixture import Schedule, Source, jump_probability
from flm.posterior import TokenPosterior
from flm.ranges import Count, TokenId, Where
from flm.samplers.canvas import Canvas
from flm.samplers.ending import Ending, Offer
from flm.samplers.flow import Moment, OnStep, check_steps
from flm.samplers.policy import Policy, Shaping


def _rises(grid: Sequence[float]) -> bool:
    return len(grid) > 1 and grid[0] == 0 and grid[-1] == 1 and all(a < b for a, b in pairwise(grid))


class DiscreteDenoiser(Protocol):
    """What these samplers call for predictions.

    It maps a state (B, L), its time (B,) and, if the canvas has them, documents (B, L) to a posterior (B, L) over the V ids of
    the data. With a mask source the posterior is read only at masks, except where a sampler says otherwise.

    A network that can write in blocks also has `block_reader(blocks (B, L), documents, earlier, keep)`. With `earlier` a
    position sees its own block and those before it; with `keep` everything outside the current block is computed once for
    each block. It returns a function of tokens (B, L), times (B,), which sequences (B,) bool to evaluate, and the number of
    the block.

    Attributes:
        source: of the noise.
        schedule: kappa(t) that samplers follow.
    """

    source: Source
    schedule: Schedule

    def __call__(self, tokens: Tensor, t: Tensor) -> TokenPosterior: ...


@dataclass(frozen=True)
class Step:
    """One step from t to t_next along a schedule.

    Attributes:
        kappa, kappa_next: shares of known positions at t and t_next.
        free: (B,) number of positions that each sequence has to fill in this stage.
    """

    t: float
    t_next: float
    kappa: float
    kappa_next: float
    free: Tensor
    schedule: Schedule

    def left(self) -> Tensor:
        """How many of `free` (B,) are still masked after the step, for samplers that fix this number."""
        return (self.free * (1 - self.kappa_next)).round().long()


@dataclass(frozen=True)
class CarriedOver:
    """The posterior where `asked` (B, L), and certainty of the tokens `known` (B, L) elsewhere (SUBS, arXiv 2406.07524)."""

    posterior: TokenPosterior
    known: Tensor
    asked: Tensor

    @property
    def vocab_size(self) -> int:
        return self.posterior.vocab_size

    @property
    def shape(self) -> torch.Size:
        """(B, L)."""
        return self.posterior.shape

    def rows(self, index: slice) -> "CarriedOver":
        return CarriedOver(self.posterior.rows(index), self.known[index], self.asked[index])

    def chunk(self, part: slice) -> Tensor:
        """Probabilities (n, V) of one slice of the flattened token axis."""
        p, known = self.posterior.chunk(part), self.known.reshape(-1)[part, None]
        certain = torch.zeros_like(p).scatter_(1, known.clamp(max=p.shape[1] - 1), 1.0)
        return torch.where(self.asked.reshape(-1)[part, None], p, certain)

    def argmax(self) -> Tensor:
        """Most probable token (B, L)."""
        return torch.where(self.asked, self.posterior.argmax(), self.known)


@dataclass(frozen=True)
class Unmasking(Moment):
    """The moment after one step, with the latest prediction.

    Attributes:
        so_far: (B, L) tokens after the step.
        masked: (B, L) bool, what is still masked.
    """

    so_far: Tensor
    masked: Tensor

    def tokens(self) -> Tensor:
        """The written tokens, and the most probable ones at masks."""
        return torch.where(self.masked, self.posterior.argmax(), self.so_far)


class Reading:
    """The network's latest prediction for each sequence of a batch.

    Attributes:
        times: (B,) given to the network.
        tau: how far sampling has come, in [0, 1], for the policy.
        posterior: the prediction before the policy shapes it; None before the first `read`.
    """

    def __init__(
        self,
        denoiser: DiscreteDenoiser,
        canvas: Canvas,
        policy: Policy,
        ending: Ending,
        by_block: Callable[..., TokenPosterior] | None = None,
    ):
        self.denoiser, self.documents, self.shaping, self.ending = denoiser, canvas.documents, Shaping(policy, canvas), ending
        self.by_block, self.block = by_block, 0
        self.times = torch.zeros(len(canvas.tokens), device=canvas.tokens.device)
        self.tau = 0.0
        self.posterior: TokenPosterior | None = None

    def read(self, tokens: Tensor, rows: Tensor) -> None:
        """Evaluates the network on the sequences `rows` (B,) bool of tokens (B, L); the first time on all."""
        if self.by_block is not None:
            self.posterior = self.by_block(tokens, self.times, rows, self.block)
            return
        chosen = slice(None) if self.posterior is None or bool(rows.all()) else rows
        documents = () if self.documents is None else (self.documents[chosen],)
        found = self.denoiser(tokens[chosen], self.times[chosen], *documents)
        if isinstance(chosen, Tensor):
            hidden = self.posterior.hidden.clone()  # the last prediction may have been given to on_step
            hidden[rows] = found.hidden
            found = replace(found, hidden=hidden)
        self.posterior = found

    def at(self, positions: Tensor) -> Offer:
        """The prediction, shaped by the policy, at the M positions (B, L) bool."""
        chosen = replace(self.posterior, hidden=self.posterior.hidden[positions][None])
        return Offer(self.shaping(chosen, self.tau, positions), self.ending)


class MaskedSampler(Policy):
    """Base of samplers of discrete paths: tracks what is masked, and draws tokens in float64. Subclasses define `written`.

    No mask is left at the end, whatever the number of steps.

    Args:
        grid: of the steps: even in "time" or in "kappa", or the steps + 1 times themselves, from 0 to 1.
        block_length: fill the positions in blocks of this many, from left to right. The steps are divided among the blocks, at
            least one for each. None: all at once.
        block_sees: what a position sees: "all", or "earlier": its own block and everything before it.
        block_cache: read what is outside a block only in the block's first evaluation. Exact if block_sees=earlier and the
            network does not depend on the time, else an approximation.
        end_id: id of the token that ends a text; None: there is none, and the other end options must be left out.
        end_penalty: subtracted from the logit of end_id, in nats.
        end_last: positions where end_id is the most probable token come last in an order of confidence (LLaDA, arXiv
            2502.09992).
        stop_at_end: once a hole has end_id with no mask before it, the rest of the hole is filled with it.
    """

    def __init__(
        self,
        grid: Literal["time", "kappa"] | Annotated[Sequence[float], Where(_rises, "which rise from 0 to 1")] = "time",
        block_length: Count | None = None,
        block_sees: Literal["all", "earlier"] = "all",
        block_cache: bool = False,
        end_id: TokenId | None = None,
        end_penalty: float = 0.0,
        end_last: bool = False,
        stop_at_end: bool = False,
        **policy: Any,
    ):
        super().__init__(**policy)
        self.ending = Ending(end_id, end_penalty, end_last, stop_at_end)
        self.grid, self.block_length = grid, block_length
        self.block_sees, self.block_cache = block_sees, block_cache

    @torch.no_grad()
    def __call__(
        self, denoiser: DiscreteDenoiser, canvas: Canvas, steps: int, generator: torch.Generator, on_step: OnStep = None
    ) -> Tensor:
        check_steps(steps)
        source, schedule, masked = denoiser.source, denoiser.schedule, canvas.editable
        tokens = canvas.fill(source.sample(canvas.tokens, generator))
        reading = Reading(denoiser, canvas, self, self.ending, self._by_block(denoiser, canvas))
        stages = self.stages(canvas, steps)
        index, total = 0, sum(count for _, count in stages)
        before, all_free = torch.zeros_like(masked.sum(1)), masked.sum(1).clamp_min(1)
        for stage, (part, count) in enumerate(stages):
            reading.block = stage
            kappas = self.kappas(schedule, count)
            free, shares, times = (part & masked).sum(1), kappas.tolist(), schedule.inverse(kappas).tolist()
            for i in range(count):
                step = Step(times[i], times[i + 1], shares[i], shares[i + 1], free, schedule)
                reading.times = torch.full_like(reading.times, times[i])
                if len(stages) > 1:  # the network's time is that of the whole canvas, not of the block
                    reading.times = schedule.inverse((before + shares[i] * part.sum(1)).double() / all_free).float()
                reading.tau = times[i] if len(stages) == 1 else (stage + times[i]) / len(stages)
                reading.shaping.stands(tokens, ~masked if source.visible else None)
                asked = masked & part
                tokens, written, erased = self.advance(step, reading, tokens, asked, part, generator)
                if erased is not None:
                    tokens, written = torch.where(erased, source.sample(tokens, generator), tokens), written & ~erased
                    masked = masked | erased
                index += 1
                if source.visible or index == total:
                    masked = masked & ~written
                tokens, masked = self.ending.closed(tokens, masked, canvas)
                if on_step is not None and reading.posterior is not None:
                    shown = CarriedOver(reading.shaping(reading.posterior, reading.tau), tokens, asked | masked)
                    on_step(Unmasking(index - 1, total, reading.tau, shown, canvas, tokens, masked))
            before = before + part.sum(1)
        return tokens

    def reread(
        self, denoiser: DiscreteDenoiser, canvas: Canvas, tokens: Tensor, tau: float, generator: torch.Generator
    ) -> tuple[TokenPosterior, Tensor]:
        """See `verified.Rereader`. Read are the masks, or all editable positions if noise is not visible."""
        kappa = denoiser.schedule.kappa(torch.tensor(tau, dtype=torch.float64)).item()
        noisy = canvas.editable & (torch.rand(tokens.shape, generator=generator, device=tokens.device) >= kappa)
        state = torch.where(noisy, denoiser.source.sample(tokens, generator), tokens)
        t = torch.full((len(tokens),), tau, device=tokens.device)
        documents = () if canvas.documents is None else (canvas.documents,)
        return denoiser(state, t, *documents), noisy if denoiser.source.visible else canvas.editable

    def stages(self, canvas: Canvas, steps: int) -> list[tuple[Tensor, int]]:
        """The blocks in order: positions (B, L) bool that are filled together, and the number of steps for it."""
        if self.block_length is None:
            return [(canvas.editable, steps)]
        block = self._blocks(canvas)
        count = -(-int(canvas.editable.sum(1).max()) // self.block_length)
        shares = [(b + 1) * steps // count - b * steps // count for b in range(count)]
        return [(canvas.editable & (block == b), max(1, share)) for b, share in enumerate(shares)]

    def _blocks(self, canvas: Canvas) -> Tensor:
        """(B, L) the block of each position; a given one is in the block before it, or -1 if there is none."""
        return (canvas.editable.cumsum(1) - 1) // (self.block_length or canvas.tokens.shape[1])

    def _by_block(self, denoiser: DiscreteDenoiser, canvas: Canvas) -> Callable[..., TokenPosterior] | None:
        if self.block_sees == "all" and not self.block_cache:
            return None
        if not hasattr(denoiser, "block_reader"):
            raise ValueError("sampling.block_cache and block_sees are for networks that keep keys and values: model=qwen3")
        return denoiser.block_reader(self._blocks(canvas), canvas.documents, self.block_sees == "earlier", self.block_cache)

    def kappas(self, schedule: Schedule, steps: int) -> Tensor:
        """Share of known positions at each time of the grid, (steps + 1,) float64 on the CPU; 1 at the last."""
        if not isinstance(self.grid, str):
            if len(self.grid) != steps + 1:
                raise ValueError(f"sampling.grid has {len(self.grid)} times: sampling.steps must be {len(self.grid) - 1}")
            return schedule.kappa(torch.tensor(list(self.grid), dtype=torch.float64))
        even = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        return schedule.kappa(even) if self.grid == "time" else even

    def advance(
        self, step: Step, reading: Reading, tokens: Tensor, asked: Tensor, part: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens after one step, which positions (B, L) bool it wrote, and which become noise; None: this sampler erases none.

        Args:
            asked: (B, L) bool, what may be written; all of `part` if noise is not visible.
            part: (B, L) bool, what this stage fills.
        """
        written = self.written(step, reading, tokens, asked, generator)
        if written.any():
            tokens = tokens.masked_scatter(written, reading.at(written).draw(generator)[0])
        known = part & ~(asked if reading.denoiser.source.visible else written)
        return tokens, written, self.erased(step, known, generator)

    def written(self, step: Step, reading: Reading, tokens: Tensor, masked: Tensor, generator: torch.Generator) -> Tensor:
        """Which of the masks (B, L) bool are written now. It must have called `reading.read` for sequences with any."""
        raise NotImplementedError

    def erased(self, step: Step, known: Tensor, generator: torch.Generator) -> Tensor | None:
        """Which positions that were `known` (B, L) bool before the step become noise; None: this sampler erases none."""
        return None


class AncestralSampler(MaskedSampler):
    """The reverse diffusion: each mask is written, independently, with the probability of the exact transition.

    There is at most one network evaluation per step, and at most as many as the batch has positions to fill.
    """

    def written(self, step: Step, reading: Reading, tokens: Tensor, masked: Tensor, generator: torch.Generator) -> Tensor:
        u = torch.rand(masked.shape, generator=generator, dtype=torch.float64, device=masked.device)
        written = masked & (u < self.probability(step))
        rows = written.any(1)
        if rows.any():
            reading.read(tokens, rows)
        return written

    def probability(self, step: Step) -> float:
        """That a mask is written in this step."""
        return jump_probability(step.kappa, step.kappa_next)
