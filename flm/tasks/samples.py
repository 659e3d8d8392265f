"""Samples as the `sampling` group asks for them: their number, given text and sampler, and how they are generated."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm
from flm.atomic import write_lines
from flm.data.tokenizers import Tokenizer
from flm.language_model import LanguageModel
from flm.samplers.canvas import CANVAS_KEYS, Canvas, CanvasOptions, pieces_of, positions
from flm.samplers.options import sampler_for
from flm.schema import made
from flm.tasks.processes import Team


@dataclass(frozen=True)
class Request:
    """The samples that the group `sampling` asks for.

    Attributes:
        canvas_options: given text, positions to fill, and numbers of steps and batches.
        options: of the sampler, as given in this command.
        batch_size: samples of a batch.
        seed: of the noise.
    """

    canvas_options: CanvasOptions
    options: dict[str, Any]
    batch_size: int
    seed: int

    @classmethod
    def of(cls, sampling: Mapping[str, Any], batch_size: int, seed: int) -> "Request":
        """From the group `sampling`."""
        return cls(check_sampling(sampling), given_options(sampling), batch_size, seed)

    @property
    def batches(self) -> int:
        return self.canvas_options.num_sample_batches

    @property
    def count(self) -> int:
        return self.batches * self.batch_size

    @property
    def steps(self) -> list[int]:
        return step_counts(self.canvas_options.steps)

    def set_options(self, lm: LanguageModel) -> None:
        """Sets the model's sampler options: those of this command, over those in its recorded config."""
        lm.options = lm.options | self.options
        sampler_for(lm.algorithm, lm.options, "sampling")

    def canvas(self, lm: LanguageModel) -> Canvas:
        """The canvas (batch_size, L) that each batch fills."""
        wanted = self.canvas_options
        if wanted.infill is not None:
            exactly = lm.tokenizer.encode_exactly
            pieces = pieces_of(wanted.infill, lambda text, goes_on: exactly(text, "sampling.infill", goes_on))
            lm.check_length(positions(pieces))
            return Canvas.from_pieces(pieces, self.batch_size, lm.device)
        length, given = lm.length if wanted.length is None else wanted.length, {}
        lm.check_length(length)
        for name, text in (("prompt", wanted.prompt), ("suffix", wanted.suffix)):
            given[name] = lm.tokenizer.encode_exactly(text, f"sampling.{name}", name == "suffix") if text else []
        return Canvas.between(given["prompt"], given["suffix"], length, self.batch_size, lm.device)


def check_sampling(sampling: Mapping[str, Any]) -> CanvasOptions:
    """The keys of the group `sampling` that are not options of a sampler.

    Raises:
        ValueError: a value is not allowed, or two contradict each other.
    """
    marked = next((key for key in sampling if key.startswith("_")), None)
    if marked is not None:
        raise ValueError(f"sampling.{marked}: no sampler has such an option")
    canvas = {key: value for key, value in sampling.items() if key in CANVAS_KEYS}
    if canvas.get("infill") is not None and any(canvas.get(key) is not None for key in ("prompt", "suffix", "length")):
        raise ValueError("sampling.infill gives the whole text: leave out sampling.prompt, suffix and length")
    found = made(CanvasOptions, canvas, "sampling")
    if found.infill is not None:
        pieces_of(found.infill, lambda text, goes_on: list(text))  # raises if it has no holes
    return found


def given_options(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler's options in the group `sampling`, without null, which means the sampler's default."""
    return {key: value for key, value in sampling.items() if key not in CANVAS_KEYS and value is not None}


def step_counts(steps: int | Sequence[int]) -> list[int]:
    """One number or several, as a list."""
    return [steps] if isinstance(steps, int) else list(steps)


def possible_steps(wanted: list[int], lm: LanguageModel, canvas: Canvas, console: Console) -> list[int]:
    """The numbers of steps to sample with: those wanted, or, with a message, the one that the canvas determines."""
    if not lm.has_fixed_steps:
        return wanted
    positions = int(canvas.editable.any(0).sum())
    if wanted != [positions]:
        asked, name = ", ".join(map(str, wanted)), type(lm.algorithm).__name__
        console.print(f"{name} takes one step a position: {positions} steps, not {asked}", soft_wrap=True)
    return [positions]


@dataclass(frozen=True)
class Generation:
    """Samples of one setting.

    Attributes:
        tokens: (N, L) on the CPU.
        batch_seconds: time of each batch, including the copy of the tokens to the CPU.
        network_evaluations: calls of all networks for a batch, averaged over batches, since some samplers skip evaluations or
            stop early, depending on their draws. None: no network was called.
    """

    tokens: Tensor
    batch_seconds: list[float]
    network_evaluations: float | None

    def timing(self) -> dict[str, float | None]:
        """For result files, per device. Rates leave out the first batch, which may be filmed, unless it is the only one."""
        timed = self.batch_seconds[1:] or self.batch_seconds
        per_sample = sum(timed) / (len(timed) * len(self.tokens) / len(self.batch_seconds))
        return {
            "seconds": sum(self.batch_seconds),
            "ms_per_sample": 1000 * per_sample,
            "tokens_per_second": self.tokens.shape[1] / per_sample,
            "network_evaluations": self.network_evaluations,
        }


def generate(
    lm: LanguageModel,
    canvas: Canvas,
    steps: int,
    batches: int,
    seed: int,
    team: Team,
    film: Callable[[Any], None] | None = None,
    **options: Any,
) -> Generation:
    """All samples, in the first process. Each process makes its share of the batches; the others do not get all.

    The noise depends on the seed and the batch, not on the number of steps, the options or the number of processes.

    Args:
        film: called with every moment of the first batch, which takes longer then.
        options: of the sampler, over those of the model.
    """
    tokens = torch.zeros(batches, *canvas.tokens.shape, dtype=torch.int64)
    seconds = torch.zeros(batches, dtype=torch.float64)
    share = team.share(batches)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, transient=True, disable=not team.is_first)
    with bars as progress, counted_calls(lm.algorithm) as calls:
        bar = progress.add_task(f"sampling, {steps} steps", total=len(share) * steps)
        for done, batch in enumerate(share):

            def on_step(moment: Any, batch: int = batch, done: int = done) -> None:
                progress.update(bar, completed=done * moment.steps + moment.index + 1, total=len(share) * moment.steps)
                if film is not None and batch == 0:
                    film(moment)

            start = time.perf_counter()
            tokens[batch] = lm.fill(canvas, steps, seed, batch, on_step, **options).cpu()
            seconds[batch] = time.perf_counter() - start
    evaluations = torch.tensor([len(calls)])
    team.add_up(tokens, seconds, evaluations)
    return Generation(tokens.flatten(0, 1), seconds.tolist(), calls_per_batch(int(evaluations), batches) or None)


@contextmanager
def counted_calls(algorithm: Algorithm) -> Iterator[list[int]]:
    """A list whose length is the number of calls of the algorithm's networks inside the block.

    Networks are the modules with an input table of their own, or the algorithm's `backbone` if there are none.
    """
    calls: list[int] = []
    networks = [module for module in algorithm.modules() if "input_table" in module._parameters]
    networks = networks or [m for m in [getattr(algorithm, "backbone", None)] if isinstance(m, nn.Module)]
    with ExitStack() as stack:
        for network in networks:
            hook = network.register_forward_pre_hook(lambda *_: calls.append(1))
            stack.callback(hook.remove)
        yield calls


def calls_per_batch(calls: int, batches: int) -> float:
    """The mean, as an int if it is whole."""
    return calls / batches if calls % batches else calls // batches


def warm_up(lm: LanguageModel, canvas: Canvas) -> None:
    """Takes one step and discards the samples, so that the setup of the first call is not timed."""
    if lm.has_fixed_steps:  # one step is one position
        canvas = Canvas.blank(len(canvas.tokens), 1, canvas.tokens.device)
    lm.fill(canvas, 1).cpu()


def write_texts(path: Path, rows: Sequence[Sequence[int]], tokenizer: Tokenizer) -> list[str]:
    """Writes a line of JSON for each text, with its tokens; returns the texts."""
    texts = [tokenizer.decode(row) for row in rows]
    write_lines(path, [{"text": text, "tokens": list(row)} for text, row in zip(texts, rows, strict=True)])
    return texts
