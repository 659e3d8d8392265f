"""Output of answers to puzzles: files with all of them and a film of the first, and a few boards in the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from flm.atomic import write_lines
from flm.data.tokenizers import Tokenizer
from flm.measures.film import FilmStrip
from flm.puzzles.rules import HOLE, Puzzle, Verdict
from flm.tasks.processes import terminal
from flm.tasks.run import Run

_SHOWN = 6  # answers, and moments of a film


@dataclass
class Desk:
    """Writes and shows the answers of a run.

    Attributes:
        about: provenance, for every file.
        source: the corpus of the puzzles.
    """

    run: Run
    about: Mapping[str, Any]
    source: Any
    tokenizer: Tokenizer
    console: Console = field(default_factory=terminal)

    def keep(
        self,
        name: str,
        steps: int,
        puzzles: Sequence[Puzzle],
        answers: Sequence[Sequence[str]],
        verdicts: Sequence[Sequence[Verdict]],
        film: FilmStrip,
    ) -> None:
        """Writes <name>-<steps>.jsonl and film-<name>-<steps>.json, and shows some of both."""
        lines = [
            {"givens": puzzle.givens, "reference": puzzle.answer, "answers": given, "solved": [v.solved for v in judged]}
            for puzzle, given, judged in zip(puzzles, answers, verdicts, strict=True)
        ]
        write_lines(self.run.folder / f"{name}-{steps}.jsonl", lines)
        frames = [frame.to_dict(self.tokenizer) for frame in film.frames]
        content = {"steps": steps, "columns": self.source.columns, "frames": frames}
        self.run.write_json(f"film-{name}-{steps}.json", {**self.about, **content})
        self.console.rule(f"{name}, {steps} step{'s' * (steps > 1)}")
        shown = zip(puzzles[:_SHOWN], answers, verdicts, strict=False)
        self.console.print(Columns(self._board(puzzle, given[0], judged[0]) for puzzle, given, judged in shown))
        if len(frames) > 1 and len(puzzles[0].answer) > 1:
            moments = [frames[i * (len(frames) - 1) // (_SHOWN - 1)] for i in range(_SHOWN)] if len(frames) > _SHOWN else frames
            cells = len(puzzles[0].answer)
            self.console.print(Columns(moment(frame, cells, self.source.columns) for frame in moments))

    def _board(self, puzzle: Puzzle, answer: str, verdict: Verdict) -> Panel:
        """An answer with givens in bold, in a frame that shows whether it is right."""
        cells, columns = Text(), self.source.columns or max(1, len(answer))
        for place, symbol in enumerate(answer):
            if place and place % columns == 0:
                cells.append("\n")
            given = len(puzzle.givens) == len(answer) and puzzle.givens[place] != HOLE
            cells.append(symbol, "bold" if given else "")
        word = "solved" if verdict.solved else "valid, changed" if verdict.valid else "wrong"
        return Panel.fit(cells, title=word, border_style="green" if verdict.solved else "red")


def moment(frame: Mapping[str, Any], cells: int, columns: int | None) -> Panel:
    """The last `cells` tokens of a frame of a film, darker with their probability; givens are bold."""
    tokens, probability, given = (frame[key][-cells:] for key in ("tokens", "probability", "given"))
    text = Text()
    for place, (token, sure, known) in enumerate(zip(tokens, probability, given, strict=True)):
        if place and place % (columns or cells) == 0:
            text.append("\n")
        text.append(token if len(token) == 1 else "·", shade(sure, known))
    return Panel.fit(text, title=f"{frame['tau']:.2f}")


def shade(probability: float, given: bool) -> str:
    """A rich style: from black on white for improbable tokens to white on blue for probable ones."""
    if given:
        return "bold"
    level = round(255 - 195 * probability)
    return f"{'white' if probability > 0.5 else 'black'} on rgb({level - 20 if level > 20 else 0},{level},255)"
