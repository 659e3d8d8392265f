"""A film strip: one text at moments of its generation, each token shaded by its probability."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flm.report.figures.plotting import INK
from flm.report.kinds.film import Film, Frame
from flm.report.page import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE = 56  # characters in a line of the figure
MOMENTS = 12  # the most of a film
LINES = 4  # the most for a moment of a text; a longer text is cut
BOARD_LINES = 32  # the most for a moment of a board
_PALE, _FULL = (255, 255, 255), (118, 183, 236)  # probability 0 and 1; dark ink stays legible on both


def shade(probability: float) -> str:
    """Background colour #rrggbb of a token: paler for a lower probability."""
    p = min(max(probability, 0.0), 1.0)
    return "#" + "".join(f"{round(a + (b - a) * p):02x}" for a, b in zip(_PALE, _FULL, strict=True))


def film_figure(films: Sequence[Film]) -> "Figure":
    """Films of one model next to each other, in the given order. In each, noise is at the top and text at the bottom."""
    from matplotlib.figure import Figure

    shown = [film.moments(MOMENTS) for film in films]
    rows = [[_lines(frame, film.columns) for frame in frames] for film, frames in zip(films, shown, strict=True)]
    # in units of text lines: one of space after each moment, two for the headings, three for the key below
    body = max(sum(len(lines) + 1 for lines in film) for film in rows)
    character, line = 0.0715, 0.165  # inches, of a monospaced 8.5 point font
    margin, column = 8, 8 + LINE + 3  # characters: room for "tau 0.12", and a column with its space
    width, height = len(films) * column * character, (body + 5.5) * line
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, len(films) * column), ylim=(body + 5.5, 0))
    axes.axis("off")
    for index, (film, frames, moments) in enumerate(zip(films, shown, rows, strict=True)):
        left = index * column + margin + 1
        heading = f"{film.steps} step{'s' * (film.steps > 1)}"
        axes.text(left, 1.2, heading, fontsize=11, fontweight="bold", color=INK, va="center")
        y = 3.0
        for frame, lines in zip(frames, moments, strict=True):
            axes.text(left - 0.8, y, f"tau {frame.tau:.2f}", fontsize=8, color="#666666", ha="right", va="center")
            for pieces in lines:
                _draw_line(axes, left, y, pieces)
                y += 1
            y += 1
    _key(axes, margin + 1, body + 4.2)
    return figure


def _lines(frame: Frame, columns: int | None = None) -> list[list[tuple[str, float, bool]]]:
    """Lines of (text, probability, given) for tokens or parts of them. A line has at most LINE characters, and of a board
    `columns` tokens."""
    lines: list[list[tuple[str, float, bool]]] = [[]]
    used, most = 0, LINES if columns is None else BOARD_LINES
    for place, (token, probability, given) in enumerate(zip(frame.tokens, frame.probability, frame.given, strict=True)):
        if columns and place and place % columns == 0:
            used = LINE
        rest = visible(token)
        if used + len(rest) > LINE >= len(rest):  # only a token longer than a line is broken
            used = LINE
        while rest:
            if used == LINE:
                if len(lines) == most:
                    return lines
                lines.append([])
                used = 0
            piece, rest = rest[: LINE - used], rest[LINE - used :]
            lines[-1].append((piece, probability, given))
            used += len(piece)
    return lines


def _draw_line(axes: Any, left: float, y: float, pieces: Sequence[tuple[str, float, bool]]) -> None:
    from matplotlib.patches import Rectangle

    x = left
    for text, probability, given in pieces:
        axes.add_patch(Rectangle((x, y - 0.46), len(text), 0.92, facecolor=shade(probability), edgecolor="none"))
        if given:
            axes.plot((x, x + len(text)), (y + 0.46, y + 0.46), color=INK, linewidth=1)
        for offset, character in enumerate(text):  # one cell for each character, whatever the width of its glyph
            if character != " ":
                axes.text(
                    x + offset + 0.5, y, character, fontsize=8.5, family="monospace", color=INK, ha="center",
                    va="center_baseline", parse_math=False,
                )  # fmt: skip
        x += len(text)


def _key(axes: Any, left: float, y: float) -> None:
    from matplotlib.patches import Rectangle

    axes.text(left, y, "probability of the token shown:", fontsize=8, color="#444444", va="center")
    for step in range(11):
        x = left + 28 + step * 1.6
        axes.add_patch(Rectangle((x, y - 0.5), 1.6, 1, facecolor=shade(step / 10), edgecolor="#BBBBBB", linewidth=0.4))
    axes.text(left + 27.3, y, "0", fontsize=8, color="#444444", ha="right", va="center")
    axes.text(left + 28 + 11 * 1.6 + 0.6, y, "1", fontsize=8, color="#444444", va="center")
