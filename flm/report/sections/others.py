"""Sections on results of kinds that packages register, and on numbers over several seeds."""

import math
from collections.abc import Mapping
from typing import Any

from flm.measures.estimate import Estimate
from flm.report.figures.drawing import Art
from flm.report.figures.throughput import lines_figure
from flm.report.models import Models, plots_over_seeds, seeds_of
from flm.report.page import Block, Details, Grid, Section, Text
from flm.report.records import Results
from flm.report.tables import stacked
from flm.results.kinds import Cell, Number, Plot, Table


def others(results: Results, models: Models, art: Art) -> list[Section]:
    """A section for each kind that has a heading, with the tables and plots of its results."""
    sections = []
    for kind, about in results.kinds.items():
        readings = [(source, reading) for source, reading in results.read if source.kind == kind]
        if not about.heading or not readings:
            continue
        blocks: list[Block] = [Text(about.note)] if about.note else []
        tables: dict[str, list[tuple[str, Table]]] = {}
        plots: dict[str, list[tuple[str, Plot]]] = {}
        for source, reading in readings:
            for table in reading.tables:
                tables.setdefault(table.name, []).append((source.label, table))
            for plot in reading.plots:
                plots.setdefault(plot.name, []).append((source.label, plot))
        blocks += [Grid(stacked(name, found)) for name, found in tables.items()]
        for name, drawn in plots.items():
            draw = lambda drawn=drawn: lines_figure(plots_over_seeds(drawn, models), art.colours)
            blocks.append(art.picture(name, draw, drawn[0][1].title))
        sections.append(Section(kind.replace("_", "-"), about.heading, tuple(blocks)))
    return sections


def seeds(results: Results) -> Section | None:
    """Every number that several seeds have: tables of means and deviations, and the values of each seed."""
    groups = over_seeds(results)
    if not groups:
        return None
    blocks: list[Block] = [
        Text(
            "Runs that differ in nothing but their seed. The deviation is that of single runs (sample standard deviation), "
            "which says by how much another seed may differ."
        )
    ]
    names = dict.fromkeys(name for name, _, _ in groups)
    for index, name in enumerate(names, 1):
        blocks += [Grid(_matrix(index, name, groups)), Grid(_against_the_first(index, name, groups))]
    blocks = [block for block in blocks if not isinstance(block, Grid) or block.table.rows]
    blocks.append(Details("Each seed", (Grid(_each(groups)),)))
    return Section("seeds", "Over seeds", tuple(blocks))


Groups = Mapping[tuple[str, str, str], Mapping[int, float]]  # (number, model, setting): value by seed


def over_seeds(results: Results) -> Groups:
    """The numbers that at least two seeds of one model have. If a seed has a number twice, the first counts."""
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    model_of = {label: (seed, name) for name, runs in seeds_of(results).items() for seed, label in runs}
    for source, reading in results.read:
        if source.label not in model_of:
            continue
        seed, name = model_of[source.label]
        for number in reading.numbers:
            value = _plain(number.value)
            if value is not None and math.isfinite(value):
                found.setdefault((number.name, name, number.setting), {}).setdefault(seed, value)
    return {key: values for key, values in found.items() if len(values) > 1}


def _matrix(index: int, name: str, groups: Groups) -> Table:
    """A row for each model; two columns for each setting within a run."""
    chosen = {(model, setting): values for (number, model, setting), values in groups.items() if number == name}
    settings = list(dict.fromkeys(setting for _, setting in chosen))
    columns = ["model", "seeds"]
    for setting in settings:
        columns += [setting or "mean", f"{setting}, deviation" if setting else "deviation"]
    rows = []
    for model in dict.fromkeys(model for model, _ in chosen):
        cells: list[Cell] = []
        for setting in settings:
            values = chosen.get((model, setting))
            cells += [None, None] if values is None else list(mean_and_deviation(list(values.values())))
        count = max(len(values) for (other, _), values in chosen.items() if other == model)
        rows.append((model, count, *cells))
    return Table(f"seeds_{index}", tuple(columns), tuple(rows), f"{name}: mean and deviation.")


def _against_the_first(index: int, name: str, groups: Groups) -> Table:
    """A row for each model after the first: the mean of its differences from the first model with the same seed."""
    models = list(dict.fromkeys(model for number, model, _ in groups if number == name))
    rows: list[tuple[Cell, ...]] = []
    for (number, model, setting), values in groups.items():
        first = groups.get((number, models[0], setting), {})
        differences = [value - first[seed] for seed, value in values.items() if seed in first]
        if number == name and model != models[0] and len(differences) > 1:
            rows.append((model, setting or None, len(differences), *mean_and_deviation(differences)))
    columns = ("model", "setting", "seeds", "mean difference", "deviation")
    against = f"{name}: minus that of {models[0]} with the same seed."
    return Table(f"seed_differences_{index}", columns, tuple(rows), against).without_empty_columns()


def _each(groups: Groups) -> Table:
    seeds = sorted({seed for values in groups.values() for seed in values})
    rows: list[tuple[Cell, ...]] = []
    for (name, model, setting), values in groups.items():
        mean, deviation = mean_and_deviation(list(values.values()))
        rows.append((name, model, setting or None, *(values.get(seed) for seed in seeds), mean, deviation))
    columns = ("number", "model", "setting", *(f"seed {seed}" for seed in seeds), "mean", "deviation")
    return Table("each_seed", columns, tuple(rows)).without_empty_columns()


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (divisor n - 1) of at least two values."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _plain(value: Number | Any) -> float | None:
    return value.mean if isinstance(value, Estimate) else value
