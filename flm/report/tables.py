"""Tables as Markdown and as plain columns for a logger, and numbers as text."""

import math
from typing import Any

from flm.measures.estimate import Estimate
from flm.results.kinds import Cell, Table

EXACT = 1 << 53  # a float beyond it is written with an exponent, since its last digits mean nothing


def number(value: float) -> str:
    """A number as text: integers and numbers from 1000 without decimals, others with four significant digits, below 1 three."""
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or 1000 <= abs(value) < EXACT:
        return f"{value:,.0f}"
    if abs(value) < 1e-4 or abs(value) >= EXACT:
        return f"{value:.2e}" if value else "0"
    return f"{value:#.4g}" if abs(value) >= 1 else f"{value:#.3g}"


def rank(value: float) -> tuple[bool, float]:
    """The sort key of a number where low is good. The nan of a run that failed comes after all numbers."""
    return math.isnan(value), value


def in_words(cell: Cell) -> str:
    """A cell as text, without its standard error; "" for an empty cell."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    return number(cell.mean if isinstance(cell, Estimate) else cell)


def without_control_characters(value: Any) -> Any:
    """A text with its control characters replaced, except line breaks and tabs. Other values are returned unchanged."""
    if not isinstance(value, str) or value.isprintable():
        return value
    return type(value)("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in value))


def markdown(table: Table) -> str:
    """The table as Markdown, under a heading."""
    head = list(map(_text, table.columns))
    rows = [head, ["---"] * len(head), *([_text(cell) for cell in row] for row in table.rows)]
    lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"## {table.name.replace('_', ' ')}\n\n{lines}"


def plain_columns(table: Table) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of plain values. A column of estimates becomes two, of means and of standard errors."""
    columns: list[str] = []
    rows: list[list[Any]] = [[] for _ in table.rows]
    for index, column in enumerate(table.columns):
        cells = [row[index] for row in table.rows]
        columns.append(column)
        for row, cell in zip(rows, cells, strict=True):
            row.append(cell.mean if isinstance(cell, Estimate) else cell)
        if any(isinstance(cell, Estimate) for cell in cells):
            columns.append(f"{column}, standard error")
            for row, cell in zip(rows, cells, strict=True):
                row.append(cell.standard_error if isinstance(cell, Estimate) else None)
    return columns, rows


def stacked(name: str, tables: list[tuple[str, Table]]) -> Table:
    """One table of several, given as (run, table), with the run as its first column. Cells of missing columns are empty."""
    columns = list(dict.fromkeys(column for _, table in tables for column in table.columns))
    rows = []
    for run, table in tables:
        for row in table.rows:
            cells = dict(zip(table.columns, row, strict=True))
            rows.append((run, *(cells.get(column) for column in columns)))
    notes = dict.fromkeys(table.note for _, table in tables if table.note)
    return Table(name, ("run", *columns), tuple(rows), " ".join(notes)).without_empty_columns()


def _text(cell: Cell) -> str:
    if isinstance(cell, Estimate):
        error = "" if cell.standard_error is None else f" +- {cell.standard_error:.2g}"
        return number(cell.mean) + error
    return " ".join(without_control_characters(in_words(cell)).replace("|", "\\|").split())
