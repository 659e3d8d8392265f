"""A report from results: its sections in order, its figures and tables."""

from collections.abc import Iterator
from dataclasses import dataclass

from flm.report.figures.drawing import Art
from flm.report.models import models_of
from flm.report.page import Block, Details, Grid, document
from flm.report.records import Results
from flm.report.sections import losses, quality
from flm.report.sections.others import others, seeds
from flm.report.sections.overview import overview
from flm.report.sections.quality import Shown
from flm.results.kinds import Table


@dataclass(frozen=True)
class Report:
    """A page and what is in it: PNG figures by name, and tables."""

    html: str
    figures: dict[str, bytes]
    tables: list[Table]


def make_report(results: Results, title: str, shown: Shown, made_by: str) -> Report:
    """The page of `results`, with those sections that have something to show.

    Args:
        shown: how much of the generated texts the page shows.
        made_by: command and code behind this page.
    """
    models = models_of(results)
    art = Art.of(models)
    sections = [
        overview(results),
        quality.comparison(results, models, art),
        seeds(results),
        losses.learning(results, art),
        quality.frontier(results, art),
        quality.diversity(results, art),
        quality.films(results, art, shown),
        quality.samples(results, shown),
        losses.cross_entropy(results, art),
        losses.likelihood(results, art),
        *others(results, models, art),
        losses.throughput(results, art),
    ]
    there = [section for section in sections if section is not None]
    count, runs = len(results.sources), len(results.runs)
    introduction = f"{count} result file{'s' * (count > 1)} of {runs} run{'s' * (runs > 1)}, side by side."
    html = document(title, introduction, there, made_by)
    return Report(html, art.files, [table for section in there for table in _tables(section.blocks)])


def _tables(blocks: tuple[Block, ...]) -> Iterator[Table]:
    for block in blocks:
        if isinstance(block, Grid):
            yield block.table
        elif isinstance(block, Details):
            yield from _tables(block.blocks)
