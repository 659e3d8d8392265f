"""`flm demo` in the terminal: shows a text while it is written, each token shaded by the model's confidence in it."""

import time
from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from flm.language_model import LanguageModel
from flm.measures.film import FilmStrip, Frame, spellings
from flm.samplers.canvas import Canvas, has_holes, pieces_of

FRAMES = 48  # the most of one film
HELP = (
    'Type a text with holes, "The [8] of the [12].", or a beginning, and press Enter. An empty line writes from nothing; '
    "/steps 1 64 sets the numbers of steps to compare; /seed 7; /quit."
)


def shaded(frame: Frame, lm: LanguageModel) -> Text:
    """The tokens of a moment, brighter with higher confidence. Given tokens are bold."""
    text = Text()
    for spelt, probability, given in zip(spellings(frame.tokens, lm.tokenizer), frame.probability, frame.given, strict=True):
        shown = "·" if spelt is None else spelt
        level = round(90 + 150 * probability)
        text.append(shown, "bold yellow" if given else f"rgb({level},{level},{round(110 + 145 * probability)})")
    return text


def pieces_for(line: str, lm: LanguageModel) -> list[list[int] | int]:
    """A line as given tokens and holes. A line without holes is a prompt, followed by one hole up to the model's length."""

    def encode(text: str, goes_on: bool = False) -> list[int]:
        return lm.tokenizer.encode_exactly(text, "the text", goes_on)

    if has_holes(line):
        return pieces_of(line, encode, "the text")
    ids = encode(line) if line else []
    if len(ids) >= lm.length:
        raise ValueError(f"the text has {len(ids)} tokens and leaves nothing to write in {lm.length}")
    return [ids, lm.length - len(ids)]


def films(lm: LanguageModel, line: str, steps: Sequence[int], seed: int) -> dict[int, list[Frame]]:
    """One text's film for each number of steps, all from the same noise."""
    canvas = Canvas.from_pieces(pieces_for(line, lm), 1, lm.device)
    found = {}
    for count in steps:
        film = FilmStrip(FRAMES)
        lm.fill(canvas, count, seed, on_step=film)
        found[count] = film.frames
    return found


def show(found: dict[int, list[Frame]], lm: LanguageModel, console: Console, seconds: float = 3.0) -> None:
    """Plays films side by side in the same time. Shows only the last frames if the output is no terminal."""
    longest = max(map(len, found.values()))

    def at(moment: int) -> RenderableType:
        panels = []
        for steps, frames in found.items():
            index = min(len(frames) - 1, moment * len(frames) // longest)
            title = f"{len(frames) if steps > FRAMES else index + 1} of {steps} step{'s' * (steps > 1)}"
            panels.append(Panel(shaded(frames[index], lm), title=title, width=max(30, console.width // len(found) - 1)))
        return Columns(panels)

    if not console.is_terminal:
        console.print(at(longest - 1))
        return
    with Live(at(0), console=console, auto_refresh=False) as live:
        for moment in range(longest):
            live.update(at(moment), refresh=True)
            time.sleep(seconds / longest)


def terminal_demo(
    lm: LanguageModel, console: Console, steps: list[int], seed: int = 0, lines: Sequence[str] | None = None
) -> None:
    """Reads lines and shows films until /quit or the end of input.

    Args:
        lines: to read in place of typed ones; None: read what is typed.
    """
    console.print(f"{lm!r}\n{HELP}")
    given = None if lines is None else iter(lines)
    while True:
        try:
            line = console.input("[bold]> [/bold]") if given is None else next(given)
        except (EOFError, StopIteration, KeyboardInterrupt):
            return
        word, _, rest = line.partition(" ")
        try:
            if word == "/quit":
                return
            if word == "/steps":
                steps = _numbers(word, rest, 1) or steps
            elif word == "/seed":
                seed = (_numbers(word, rest, 0) or [seed])[0]
            elif word.startswith("/"):
                console.print(HELP)
            else:
                show(films(lm, line, steps, seed), lm, console)
                seed += 1
        except ValueError as error:
            console.print(f"error: {error}", style="red", markup=False)


def _numbers(word: str, rest: str, least: int) -> list[int]:
    found = rest.split()
    if not all(one.isdecimal() and int(one) >= least for one in found):
        raise ValueError(f"{word} takes whole numbers of at least {least}, not {rest.strip()!r}")
    return [int(one) for one in found]
