"""Filling holes in many different texts with one model, as code_eval and conditional_eval do."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flm.data.tokenizers import Tokenizer
from flm.language_model import LanguageModel
from flm.samplers.canvas import Canvas, Pieces, positions
from flm.tasks.processes import Team


@dataclass(frozen=True)
class Writer:
    """Fills holes in texts with a model.

    Attributes:
        batch: canvases filled at once.
        seed: of the noise; each batch draws other noise from it.
        padding: how rows of its training pairs ended, from `padding_of`; canvases end in the same way.
        team: each process fills its share of the batches, and all get all answers.
    """

    lm: LanguageModel
    batch: int
    seed: int
    padding: str | None = None
    team: Team = Team()

    def steps(self, wanted: list[int]) -> list[int]:
        """The step counts to use: those wanted, or [1] if the canvas determines the number of steps."""
        return [1] if self.lm.has_fixed_steps else wanted

    def __call__(self, requests: Sequence[Pieces], samples: int, steps: int) -> list[list[list[str]]]:
        """`samples` answers to every request: the texts of its holes, each up to the first EOS.

        Canvases of equal length are filled together, whichever request they belong to.
        """
        by_length: dict[int, list[tuple[int, int]]] = defaultdict(list)
        canvases = [Canvas.from_pieces(self._row(pieces), 1, self.lm.device) for pieces in requests]
        for index, canvas in enumerate(canvases):
            by_length[canvas.tokens.shape[1]] += [(index, sample) for sample in range(samples)]
        batches = [
            jobs[start : start + self.batch]
            for _, jobs in sorted(by_length.items())
            for start in range(0, len(jobs), self.batch)
        ]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        filled: list[list[list[str]]] = []
        with Progress(*columns, transient=True, disable=not self.team.is_first) as progress:
            for number in progress.track(self.team.share(len(batches)), description=f"writing, {steps} steps"):
                together = Canvas.stacked([canvases[index] for index, _ in batches[number]])
                rows = self.lm.fill(together, steps, self.seed, number).tolist()
                texts = zip(batches[number], rows, strict=True)
                filled.append([holes_of(requests[index], row, self.lm.tokenizer) for (index, _), row in texts])
        answers: list[list[list[str]]] = [[[] for _ in range(samples)] for _ in requests]
        for jobs, found in zip(batches, self.team.all_of(filled), strict=True):
            for (index, sample), texts_of_holes in zip(jobs, found, strict=True):
                answers[index][sample] = texts_of_holes
        return answers

    def _row(self, pieces: Pieces) -> Pieces:
        """The pieces with the end of a row as in training.

        If the text ends in given tokens, EOS follows. If padding was learned, the rest of the row is a hole.
        """
        if self.padding is None:
            return pieces
        row = list(pieces) if isinstance(pieces[-1], int) else [*pieces, [self.lm.tokenizer.eos_id]]
        return [*row, max(0, self.lm.length - positions(row))] if self.padding == "target" else row


def padding_of(lm: LanguageModel) -> str | None:
    """data.layout.padding of the pairs that a model was trained on: target or excluded.

    None: it was not trained on pairs, or it writes from left to right and does not see the end of a row.
    """
    layout = (lm.config.get("data") or {}).get("layout")
    return None if layout is None or lm.has_fixed_steps else layout.get("padding")


def check_hole_is_bounded(padding: str | None, new_tokens: Any, key: str) -> None:
    """Raises ValueError if nothing limits the answer: a model that never saw padding fills all the room it has."""
    if padding == "excluded" and new_tokens is None:
        raise ValueError(
            f"{key}=null: trained with data.layout.padding=excluded, this model fills all the room it is given: set {key} to "
            "reference (as long as the reference, an oracle) or a number, or train with data.layout.padding=target"
        )


def holes_of(pieces: Pieces, row: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """Texts of the holes in a filled row, each up to its first EOS."""
    texts, place = [], 0
    for piece in pieces:
        size = piece if isinstance(piece, int) else len(piece)
        if isinstance(piece, int):
            ids = list(row[place : place + size])
            ids = ids[: ids.index(tokenizer.eos_id)] if tokenizer.eos_id in ids else ids
            texts.append(tokenizer.text_after(row[max(0, place - 8) : place], ids))
        place += size
    return texts
