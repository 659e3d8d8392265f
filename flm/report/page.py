"""The HTML page of a report: sections of blocks, each kind with its template. The page needs no other file and no network."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flm.measures.estimate import Estimate
from flm.report.kinds.film import Film
from flm.report.tables import in_words, without_control_characters
from flm.results.kinds import Cell, Table

_VISIBLE = {"\n": "\u21b5", "\r": "\u21b5", "\t": "\u2192"}
FRAMES = 48  # the most of a film


@dataclass(frozen=True)
class Text:
    text: str
    template = "text.html"


@dataclass(frozen=True)
class Heading:
    text: str
    template = "heading.html"


@dataclass(frozen=True)
class Missing:
    """A result that is missing, and the command that makes it."""

    text: str
    command: str
    template = "missing.html"


@dataclass(frozen=True)
class Picture:
    """A figure as SVG in the page's colours, with a description for those who do not see it."""

    svg: str
    description: str
    template = "picture.html"


@dataclass(frozen=True)
class Grid:
    """A sortable table. Columns of numbers are aligned right, and estimates have their standard error."""

    table: Table
    template = "table.html"

    @property
    def is_numeric(self) -> list[bool]:
        columns = range(len(self.table.columns))
        numeric = [all(not isinstance(row[i], str) for row in self.table.rows) for i in columns]
        return [n or (i > 0 and self.table.columns[i] == "steps") for i, n in enumerate(numeric)]


@dataclass(frozen=True)
class Tile:
    """A number at the top of the page. `about` says which run it is of, and how it was measured."""

    name: str
    value: Cell
    about: str


@dataclass(frozen=True)
class Card:
    tiles: tuple[Tile, ...]
    template = "card.html"


@dataclass(frozen=True)
class Column:
    """Texts under a heading; None: their file is missing."""

    heading: str
    texts: tuple[str, ...] | None


@dataclass(frozen=True)
class Columns:
    columns: tuple[Column, ...]
    template = "columns.html"


@dataclass(frozen=True)
class Reels:
    """Films next to each other, each with the first `tokens` tokens of its text."""

    films: tuple[Film, ...]
    tokens: int
    template = "films.html"


@dataclass(frozen=True)
class Commands:
    """Pairs of a run and its command."""

    commands: tuple[tuple[str, str], ...]
    template = "commands.html"


@dataclass(frozen=True)
class Details:
    """Blocks that the reader can unfold."""

    summary: str
    blocks: "tuple[Block, ...]"
    template = "details.html"


Block = Text | Heading | Missing | Picture | Grid | Card | Columns | Reels | Commands | Details


@dataclass(frozen=True)
class Section:
    name: str  # an identifier
    heading: str
    blocks: tuple[Block, ...]


def document(title: str, introduction: str, sections: Sequence[Section], footer: str) -> str:
    """The whole page. Text from models and files is escaped, and the browser runs only the page's own script."""
    environment = _environment()
    script = environment.get_template("page.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        frames=FRAMES,
        title=title,
        introduction=introduction,
        sections=sections,
        footer=footer,
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        style=Markup(environment.get_template("page.css").render()),
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("flm.report"),
        autoescape=True,
        finalize=without_control_characters,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "in_words": in_words, "sort_key": sort_key}
    environment.filters["trusted"] = Markup
    environment.tests |= {"estimate": lambda value: isinstance(value, Estimate), "hash": _is_hash}
    return environment


def visible(token: str) -> str:
    """A token with its line breaks, tabs and other control characters made visible, one character each."""
    return "".join(_VISIBLE.get(c, c if c.isprintable() else "\ufffd") for c in token)


def sort_key(cell: Cell) -> str:
    """The key by which a column is sorted: the number in a cell with all digits, or its text."""
    value = cell.mean if isinstance(cell, Estimate) else cell
    if value is None or isinstance(value, str):
        return value or ""
    return repr(value).replace("inf", "Infinity").replace("nan", "NaN")  # as JavaScript spells them


def _is_hash(cell: Cell) -> bool:
    return isinstance(cell, str) and len(cell) == 12 and set(cell) <= set("0123456789abcdef")
