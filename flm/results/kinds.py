"""The content of a result file as tables, plots and numbers that any report can show.

A package with its own kind of results registers a `ResultKind` for it (`flm.registry.Wing.result_kinds`). Reports then show
these results beside all others. Nothing here needs torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flm.measures.estimate import Estimate

Number = float | Estimate | None
Cell = Number | int | str


@dataclass(frozen=True)
class Source:
    """A result file and its origin.

    Attributes:
        label: name of the run.
        algorithm, data: in a few words; None: unknown.
        step: optimiser steps that the model was trained for; None: unknown.
        sha256: of the checkpoint file; None: unknown.
        command: as typed, in one line; "": unknown.
        seed: of the evaluation, or of the training if the file records a training run; None: unknown.
        training: config that the model was trained with; empty: unknown.
        content: the whole file, of which only the fields above are checked.
    """

    path: Path
    kind: str
    label: str
    algorithm: str | None
    data: str | None
    step: int | None
    sha256: str | None
    command: str
    seed: int | None
    training: Mapping[str, Any] = field(repr=False)
    content: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns.

    Attributes:
        name: an identifier.
        note: what a reader has to know; "": nothing.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def without_empty_columns(self) -> "Table":
        kept = [i for i in range(len(self.columns)) if any(row[i] is not None for row in self.rows)]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return Table(self.name, tuple(self.columns[i] for i in kept), rows, self.note)


@dataclass(frozen=True)
class Line:
    """Points of a plot, joined in order.

    Attributes:
        label: "" if a run has only one line.
        is_reference: whether it is a baseline, drawn dashed, and not the model.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    is_reference: bool = False


@dataclass(frozen=True)
class Plot:
    """Lines in one diagram. Plots of the same name, from several files, are drawn as one.

    Attributes:
        x_is_log: whether the x axis is logarithmic, in powers of two.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    x_is_log: bool = False


@dataclass(frozen=True)
class KeyNumber:
    """A number worth comparing over runs and averaging over seeds.

    Attributes:
        name: what is measured, with its unit.
        setting: circumstances of the measurement beside the run; "": none.
        better: the direction that is better; None: neither.
    """

    name: str
    setting: str
    value: Number
    better: Literal["lower", "higher"] | None


@dataclass(frozen=True)
class Reading:
    """The content of one file.

    Attributes:
        tables: tables of the same name, from several files, are shown as one, with the run in the first column.
        plots: plots of the same name, from several files, are drawn as one.
        numbers: the first is the most important: it is shown at the top of the report.
        records: objects for sections of their own; see `flm.report`.
    """

    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    numbers: tuple[KeyNumber, ...] = ()
    records: tuple[Any, ...] = ()


@dataclass(frozen=True)
class ResultKind:
    """How files of one kind are found, read and shown.

    Attributes:
        files: patterns of their names ("frontier.json", "film-*.json").
        read: checks the content with `flm.results.files.checked` and returns a `Reading`; ValueError if it is not complete.
        heading, note: of the section; "": other sections show this kind.
    """

    files: tuple[str, ...]
    read: Callable[[Source], Reading]
    heading: str = ""
    note: str = ""
