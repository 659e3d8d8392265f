"""What models write: side by side, at matched entropy, in numbers, as films, and to read."""

from dataclasses import dataclass

from flm.report.comparison import compared, comparison_table, real_level
from flm.report.figures.drawing import Art
from flm.report.figures.film_strip import film_figure
from flm.report.figures.plotting import png, styled
from flm.report.figures.quality import comparison_figure, diversity_figure
from flm.report.frontier.figure import frontier_figure, perplexity_by
from flm.report.frontier.result_kind import Frontier
from flm.report.kinds.film import Film
from flm.report.kinds.samples import Samples, TextSet
from flm.report.models import Models, compared_over_seeds
from flm.report.page import Block, Column, Columns, Grid, Heading, Missing, Reels, Section, Text
from flm.report.records import Results
from flm.report.sections.quality_tables import diversity_table, frontier_table, nulls_table

NULLS = (
    "Texts that no model wrote, drawn grey: what reaches no lower than these at its entropy says nothing, and what repeats "
    "more than real text is marked, in the figure by a cross."
)
CHECKPOINT = "eval.checkpoint_path=RUN/checkpoints/last.ckpt"


@dataclass(frozen=True)
class Shown:
    """How much of the generated texts is shown: samples of a set, characters of a sample, and tokens of a film."""

    samples: int
    characters: int
    film_tokens: int


def comparison(results: Results, models: Models, art: Art) -> Section | None:
    if len(models) < 2:
        return None
    rows = compared_over_seeds(compared(results), models)
    blocks: list[Block] = [
        Text(
            "One row for each model; of several seeds the mean, with the standard error over them. Perplexities are read at "
            "the entropy of real text; one in brackets belongs to a setting that came only so near, and compares with nothing. "
            "An upper bound on bits per character says that the model is at least this good."
        )
    ]
    if any(row.quality for row in rows):
        scorer = results.of(Frontier)[0].scorer
        described = f"log {perplexity_by(scorer)} of each model by sampling steps, and by time a sample"
        draw = lambda: comparison_figure(rows, real_level(results), scorer, art.colours)
        blocks += [art.picture("comparison", draw, described), Text(f"Scored by {scorer}.")]
    return Section("comparison", "Models side by side", (*blocks, Grid(comparison_table(rows))))


def frontier(results: Results, art: Art) -> Section:
    name, heading = "frontier", "Perplexity at matched entropy"
    by_scorer: dict[str, list[Frontier]] = {}
    for one in results.of(Frontier):
        by_scorer.setdefault(one.scorer, []).append(one)
    if not by_scorer:
        command = f"python main.py mode=frontier {CHECKPOINT}"
        return Section(name, heading, (Missing("No sweep among these results; this makes one:", command),))
    blocks: list[Block] = [
        Text(
            "A sampler trades perplexity for entropy, so models are compared where their entropies are equal: lower is better "
            "on one vertical line, and the line of real text is the one that matters."
        )
    ]
    for index, (scorer, found) in enumerate(by_scorer.items(), 1):
        figure = f"frontier_{index}" if index > 1 else "frontier"
        if len(by_scorer) > 1:
            blocks.append(Heading(f"Scored by {scorer}"))
        curves = [curve for one in found for curve in one.curves]
        levels = [(one.real[0].mean, one.real[1].mean) for one in found if one.real is not None]
        nulls = found[0].nulls
        draw = lambda: frontier_figure(curves, levels, scorer, art.colours, nulls)  # noqa: B023 -- drawn at once
        blocks.append(art.picture(figure, draw, f"log {perplexity_by(scorer)} against entropy, scored by {scorer}"))
        matched = frontier_table(figure, found)
        blocks += [Grid(matched)] if matched.rows else []
        blocks += [Text(f"{said}.") for one in found for said in one.changes]
        if nulls:
            blocks += [Text(NULLS), Grid(nulls_table(f"{figure}_nulls", nulls))]
    return Section(name, heading, tuple(blocks))


def diversity(results: Results, art: Art) -> Section:
    name, heading, found = "diversity", "Diversity by steps", results.of(Samples)
    if not found:
        command = f"python main.py mode=sample_eval {CHECKPOINT}"
        return Section(name, heading, (Missing("No measured samples; this makes some:", command),))
    said = Text(
        "Each number is to be read against real text of the same length and number: an entropy below it is repetition, "
        "one above it is noise."
    )
    drawn = art.picture(
        "diversity", lambda: diversity_figure(art.as_models(found), art.colours), "entropy and distinct-n by steps"
    )
    return Section(name, heading, (said, drawn, Grid(diversity_table(found))))


def films(results: Results, art: Art, shown: Shown) -> Section:
    name, heading = "film", "Film strip"
    by_run: dict[str, list[Film]] = {}
    for film in sorted(results.of(Film), key=lambda film: film.steps):
        by_run.setdefault(film.source.label, []).append(film)
    if not by_run:
        command = f"python main.py mode=sample_eval {CHECKPOINT} sampling.film=true"
        return Section(name, heading, (Missing("No film; sampling leaves one when asked to:", command),))
    blocks: list[Block] = [
        Text(
            "One generation from noise to text: at each moment the token the model finds likeliest, shaded by its probability."
        )
    ]
    for index, (label, found) in enumerate(by_run.items(), 1):
        pair = found[:1] + found[1:][-1:]
        if len(by_run) > 1:
            blocks.append(Heading(label))
        longest = max(len(frame.tokens) for film in pair for frame in film.frames)
        if longest > shown.film_tokens:
            blocks.append(Text(f"The first {shown.film_tokens} of {longest} tokens."))
        # in the page as text, which can be searched and hovered over; as a picture for other pages
        blocks.append(Reels(tuple(pair), shown.film_tokens))
        with styled():
            art.files[f"film_strip_{index}" if index > 1 else "film_strip"] = png(film_figure(pair))
    return Section(name, heading, tuple(blocks))


def samples(results: Results, shown: Shown) -> Section:
    name, heading, found = "samples", "Samples beside real text", results.of(Samples)
    if not found:
        command = f"python main.py mode=sample_eval {CHECKPOINT}"
        return Section(name, heading, (Missing("No samples; this makes some:", command),))
    blocks: list[Block] = []
    for run in found:
        if len(found) > 1:
            blocks.append(Heading(run.source.label))
        ends = [*run.generated[:1], *run.generated[1:][-1:], *([run.real] if run.real is not None else [])]
        blocks.append(Columns(tuple(_column(one, shown) for one in ends)))
    return Section(name, heading, tuple(blocks))


def _column(one: TextSet, shown: Shown) -> Column:
    heading = "real text" if one.steps is None else f"{one.steps} step{'s' * (one.steps != 1)}"
    if one.texts is None:
        return Column(heading, None)
    cut = [t if len(t) <= shown.characters else t[: shown.characters].rstrip() + " \u2026" for t in one.texts[: shown.samples]]
    return Column(heading, tuple(cut))
