"""A model's answers to puzzles, written batch by batch, with counts of network calls and the time taken."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flm.language_model import LanguageModel
from flm.puzzles.rules import Puzzle
from flm.samplers.canvas import Canvas
from flm.tasks.samples import calls_per_batch, counted_calls


@dataclass(frozen=True)
class Written:
    """Answers to puzzles, and what they cost.

    Attributes:
        answers: for each puzzle, the requested number of answers; "" if the puzzle does not fit.
        evaluations: calls of all networks together per batch, in the mean over batches.
        ms_per_answer: milliseconds. The first batch may be filmed, so it counts only if there is no other.
        left_out: number of puzzles that do not fit.
    """

    answers: list[list[str]]
    evaluations: float
    ms_per_answer: float
    left_out: int


@dataclass(frozen=True)
class Writer:
    """A model that answers puzzles of a corpus.

    Attributes:
        source: gives `request` and `read`, see `flm.puzzles.corpus.PuzzleCorpus`.
        batch: canvases filled at once.
        seed: of the noise, together with the number of the batch. The noise does not depend on the steps.
    """

    lm: LanguageModel
    source: Any
    batch: int
    seed: int

    def __call__(self, puzzles: Sequence[Puzzle], samples: int, steps: int, film: Any = None) -> Written:
        """`samples` answers to every puzzle.

        Args:
            film: called with every moment of the first batch.
        """
        device = self.lm.device
        requests = [self._request(puzzle) for puzzle in puzzles]
        jobs = [(index, sample) for index, found in enumerate(requests) if found for sample in range(samples)]
        batches = [jobs[start : start + self.batch] for start in range(0, len(jobs), self.batch)]
        answers = [[""] * samples for _ in puzzles]
        seconds: list[tuple[float, int]] = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True) as progress, counted_calls(self.lm.algorithm) as calls:
            for number, together in enumerate(progress.track(batches, description=f"writing, {steps} steps")):
                ids, holes = zip(*(requests[index] for index, _ in together), strict=True)  # type: ignore[misc]
                canvas = Canvas(torch.tensor(ids, device=device), torch.tensor(holes, device=device))
                start = time.perf_counter()
                rows = self.lm.fill(canvas, steps, self.seed, number, film if number == 0 else None).cpu()
                seconds.append((time.perf_counter() - start, len(together)))
                for (index, sample), row in zip(together, rows.tolist(), strict=True):
                    answers[index][sample] = self.source.read(row, puzzles[index], self.lm.tokenizer)
        timed = seconds[1:] or seconds
        return Written(
            answers,
            calls_per_batch(len(calls), max(1, len(batches))),
            1000 * sum(s for s, _ in timed) / max(1, sum(n for _, n in timed)),
            sum(found is None for found in requests),
        )

    def holes(self, puzzle: Puzzle) -> int:
        """Number of positions to write; 0 if the puzzle does not fit."""
        request = self._request(puzzle)
        return 0 if request is None else sum(request[1])

    def misfits(self, puzzles: Sequence[Puzzle]) -> list[str]:
        """The reason of each puzzle that does not fit the model's length or tokenizer.

        Raises:
            ValueError: no puzzle fits.
        """
        reasons = []
        for puzzle in puzzles:
            try:
                self.source.request(puzzle, self.lm.tokenizer, self.lm.length)
            except ValueError as error:
                reasons.append(str(error))
        if puzzles and len(reasons) == len(puzzles):
            raise ValueError(
                f"none of the {len(puzzles)} puzzles fits the model: {reasons[0]}: choose data that it was trained on"
            )
        return reasons

    def _request(self, puzzle: Puzzle) -> tuple[list[int], list[bool]] | None:
        try:
            return self.source.request(puzzle, self.lm.tokenizer, self.lm.length)
        except ValueError:
            return None
