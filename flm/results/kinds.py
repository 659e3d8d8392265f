"""What a result file says, in words that the core, its wings and other packages share.

A package that writes results of a kind of its own registers a `ResultKind` for it (`flm.registry.Wing.result_kinds`); its
results then stand in reports beside all others. Nothing here needs torch.
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
    """A result file and where it came from.

    Attributes:
        label: name of the run.
        algorithm, data: in a word or a few; None where the file does not say.
        step: optimiser steps the model was trained for; None where not known.
        sha256: of the checkpoint file.
        command: as typed, in one line; "" where not known.
        seed: of the evaluation, or of the training where the file records a training run.
        training: config the model was trained with; empty where not known.
        content: the whole file, unchecked beyond the fields above.
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
        note: what a reader has to know; "" for nothing.
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
    """Points of a plot, joined in order. label: "" where a run has but one; `is_reference`: not of the model itself, dashed."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    is_reference: bool = False


@dataclass(frozen=True)
class Plot:
    """Lines over one axis, `x_is_log` for powers of two; plots of one name, of several files, are drawn as one."""

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
        setting: under which circumstances, beside the run; "" for none.
        better: which direction is good; None: neither.
    """

    name: str
    setting: str
    value: Number
    better: Literal["lower", "higher"] | None


@dataclass(frozen=True)
class Reading:
    """What one file says.

    Attributes:
        tables: shown with a column for the run in front; those of one name, of several files, as one table.
        plots: likewise.
        numbers: the most important one first: it stands on top of the report.
        records: objects that sections made for them show; see `flm.report`.
    """

    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    numbers: tuple[KeyNumber, ...] = ()
    records: tuple[Any, ...] = ()


@dataclass(frozen=True)
class ResultKind:
    """How files of one kind are found, read and shown.

    Attributes:
        files: their names, as patterns ("frontier.json", "film-*.json").
        read: checks the content, with `flm.results.files.checked`, and says what is in it; ValueError where it is not complete.
        heading, note: of the section; "" for a kind that other sections show.
    """

    files: tuple[str, ...]
    read: Callable[[Source], Reading]
    heading: str = ""
    note: str = ""
