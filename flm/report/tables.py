"""Tables in Markdown, in plain columns for a logger, and numbers in words."""

import math
from typing import Any

from flm.measures.estimate import Estimate
from flm.results.kinds import Cell, Table

EXACT = 1 << 53  # whole numbers beyond it are no counts


def number(value: float) -> str:
    """Enough digits to compare: whole numbers in full, others to four significant figures, below 1 to three."""
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or 1000 <= abs(value) < EXACT:
        return f"{value:,.0f}"
    if abs(value) < 1e-4 or abs(value) >= EXACT:
        return f"{value:.2e}" if value else "0"
    return f"{value:#.4g}" if abs(value) >= 1 else f"{value:#.3g}"


def rank(value: float) -> tuple[bool, float]:
    """What numbers are ordered by, the lowest first: a run that went wrong, nan, is behind all others."""
    return math.isnan(value), value


def in_words(cell: Cell) -> str:
    """A cell without its standard error; "" for an empty one."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    return number(cell.mean if isinstance(cell, Estimate) else cell)


def without_control_characters(value: Any) -> Any:
    """A text in which only line breaks and tabs are no signs; anything else as it is."""
    if not isinstance(value, str) or value.isprintable():
        return value
    return type(value)("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in value))


def markdown(table: Table) -> str:
    """A heading and the table, in Markdown."""
    head = list(map(_text, table.columns))
    rows = [head, ["---"] * len(head), *([_text(cell) for cell in row] for row in table.rows)]
    lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"## {table.name.replace('_', ' ')}\n\n{lines}"


def plain_columns(table: Table) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows where an estimate is two plain numbers, its mean and its standard error."""
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
    """Tables of several runs, (run, table) each, as one with a column for the run in front; columns they lack are empty."""
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
