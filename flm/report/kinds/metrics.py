"""Reads the log of a training run, metrics/version_*/metrics.csv with a file for each start, as one series per column."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from flm.handed_in import regular_file

MAX_BYTES = 256 << 20  # of one file
COLUMNS = 1000
SPEED = "perf/tokens_per_second"


@dataclass(frozen=True)
class Metrics:
    """The log of a run.

    Attributes:
        series: (optimiser steps done, value) by name. If a start repeated steps that were logged before, the repetition counts.
        tokens_per_second: median over the log of the last start that has any.
        steps: optimiser steps done at the last entry; None: the log is empty.
    """

    series: Mapping[str, tuple[tuple[int, float], ...]]
    tokens_per_second: float | None
    steps: int | None


def read_metrics(folder: Path) -> Metrics:
    """The log in a run folder; empty if nothing was logged.

    Raises:
        ValueError: a file, which is named, is no such log.
    """
    starts = sorted(folder.glob("metrics/version_*/metrics.csv"), key=_version)
    series: dict[str, dict[int, float]] = {}
    speed = None
    for start in starts:
        found = _columns(start)
        if found:
            begin = min(step for points in found.values() for step in points)
            for name, points in series.items():
                series[name] = {step: value for step, value in points.items() if step < begin}
        for name, points in found.items():
            series.setdefault(name, {}).update(points)
        if SPEED in found:
            speed = median(found[SPEED].values())
    kept = {name: tuple(sorted(points.items())) for name, points in series.items() if points}
    return Metrics(kept, speed, max((points[-1][0] for points in kept.values()), default=None))


def _columns(path: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    try:
        with open(regular_file(path, MAX_BYTES), encoding="utf-8", newline="") as file:
            rows = csv.reader(line for line in file if line.endswith("\n"))  # the last row of a killed run may be incomplete
            names = next(rows, [])
            if len(names) > COLUMNS:
                raise ValueError(f"it has {len(names)} columns")
            at = names.index("step") if "step" in names else None
            for row in rows:
                if at is None or at >= len(row) or not row[at]:
                    continue
                step = int(float(row[at]))
                for index, name in enumerate(names[: len(row)]):
                    if row[index] and index != at:
                        # values are logged with the number of the step in progress, samples with the number of steps done
                        found.setdefault(name, {})[step + (not name.startswith("gen/"))] = float(row[index])
    except (OSError, ValueError, OverflowError, csv.Error) as error:
        raise ValueError(f"{path}: not a log of metrics ({error})") from error
    found.pop("epoch", None)
    return {name: points for name, points in found.items() if any(math.isfinite(value) for value in points.values())}


def _version(path: Path) -> int:
    number = path.parent.name.removeprefix("version_")
    return int(number) if number.isdecimal() else -1
