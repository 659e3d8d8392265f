"""Sections on losses and speed: learning curves, samples during training, loss by tau, likelihoods and throughput."""

from collections.abc import Iterable, Sequence

from flm.report.figures.drawing import Art
from flm.report.figures.losses import (
    GENERATED,
    by_learning_rate,
    cross_entropy_figure,
    generated,
    generation_figure,
    learning_figure,
    learning_rate_figure,
    likelihood_figure,
)
from flm.report.figures.throughput import throughput_figure
from flm.report.kinds.likelihood import Likelihood
from flm.report.kinds.samples import Samples
from flm.report.kinds.training import LOSS, Training, in_words
from flm.report.page import Block, Details, Grid, Heading, Missing, Section, Text
from flm.report.records import Results
from flm.report.sections.quality import CHECKPOINT
from flm.report.tables import rank
from flm.results.kinds import Cell, Table


def learning(results: Results, art: Art) -> Section:
    name, heading = "learning", "Learning curves"
    found = [run for run in results.of(Training) if LOSS in run.metrics.series or run.validated is not None]
    if not found:
        why = "No log of a training run: give the folder of one with metrics (logger=csv):"
        return Section(name, heading, (Missing(why, "python main.py mode=report report.inputs=[RUN,...]"),))
    blocks: list[Block] = [
        Text(
            "Training loss as logged, validation loss on averaged weights with marks. Losses of two algorithms compare only "
            "where both are the same quantity."
        ),
        art.picture("learning", lambda: learning_figure(art.as_models(found), art.colours), "training and validation loss"),
        Grid(learning_table(found)),
    ]
    if any(len({rate for rate, _ in points}) > 1 for points in by_learning_rate(found).values()):
        draw = lambda: learning_rate_figure(found)
        blocks.append(art.picture("learning_rates", draw, "last validation loss by learning rate, a line for each optimiser"))
    watched = [run for run in found if any(generated(run, measure) for measure in GENERATED)]
    if watched:
        draw = lambda: generation_figure(art.as_models(watched), art.colours)
        blocks += [
            Heading("Samples while training went on"),
            art.picture("generation", draw, "entropy, 3-gram cross-entropy and different tokens of samples by optimiser steps"),
        ]
    return Section(name, heading, tuple(blocks))


def learning_table(trainings: Sequence[Training]) -> Table:
    """Last and best losses of each run."""
    rows = []
    for run in trainings:
        trained = run.metrics.series.get(LOSS, ())
        measured = run.metrics.series[run.validated] if run.validated is not None else ()
        step, best = min(measured, key=lambda point: rank(point[1]), default=(None, None))
        name = in_words(run.validated.removeprefix("val/")) if run.validated is not None else None
        last = measured[-1][1] if measured else None
        rows.append((run.source.label, trained[-1][1] if trained else None, name, last, best, step))
    columns = ("run", "last training loss", "validation measure", "last validation", "best validation", "at step")
    return Table("learning", columns, tuple(rows)).without_empty_columns()


def cross_entropy(results: Results, art: Art) -> Section:
    name, heading = "cross-entropy", "Loss along the clock"
    found = [run for run in results.of(Training) if run.by_tau]
    if not found:
        why = "No validation along the clock: give the folder of a training run with metrics (logger=csv):"
        return Section(name, heading, (Missing(why, "python main.py mode=report report.inputs=[RUN,...]"),))
    measures = ", ".join(sorted({in_words(run.measure) for run in found if run.measure}))
    said = Text(
        f"Last validation of each run: {measures} per token. The dashed line is the best decoder without "
        "context, which sees a position's own noised token and token frequencies: what lies below it was learned from "
        "context. Losses of two clocks or two algorithms are not comparable."
    )
    drawn = art.picture("ce_by_tau", lambda: cross_entropy_figure(art.as_models(found), art.colours), "validation loss by tau")
    return Section(name, heading, (said, drawn, Grid(cross_entropy_table(found))))


def cross_entropy_table(trainings: Sequence[Training]) -> Table:
    """A row for each part of the axis tau, and two columns for each run."""
    edges = sorted({(b.low, b.high) for run in trainings for b in run.by_tau})
    columns, values = ["tau"], []
    for run in trainings:
        by_edge = {(b.low, b.high): b for b in run.by_tau}
        columns += [run.source.label, f"{run.source.label}, without context"]
        values.append([by_edge[edge].value if edge in by_edge else None for edge in edges])
        values.append([by_edge[edge].context_free if edge in by_edge else None for edge in edges])
    rows = zip([f"{low:.1f} to {high:.1f}" for low, high in edges], *values, strict=True)
    return Table("cross_entropy", tuple(columns), tuple(rows)).without_empty_columns()


def likelihood(results: Results, art: Art) -> Section:
    name, heading, found = "likelihood", "Likelihood", results.of(Likelihood)
    if not found:
        command = f"python main.py mode=ppl_eval {CHECKPOINT}"
        return Section(name, heading, (Missing("No likelihood; this measures it:", command),))
    blocks: list[Block] = [
        Text(
            "Nats per token of held-out text. An upper bound says that the model is at least this good; perplexities per token "
            "compare only under one tokenizer, bits per byte and per character always."
        ),
        Grid(likelihood_table(found)),
    ]
    drawn = [row for row in found if row.spans]
    if drawn:
        draw = lambda: likelihood_figure(drawn, art.colours)
        blocks += [Heading("Where the bound comes from"), art.picture("likelihood", draw, "nats per token summed along t")]
    parts = contribution_table(found)
    if parts.rows:
        blocks.append(Details("Contribution of each part", (Grid(parts),)))
    return Section(name, heading, tuple(blocks))


def likelihood_table(likelihoods: Sequence[Likelihood]) -> Table:
    columns = ("run", "corpus", "bound", "value", "nats per token", "Monte-Carlo error", "perplexity per token")
    columns += ("bits per byte", "bits per character")
    rows = [
        (row.source.label, row.corpus, row.variant or None, row.bound, row.nats_per_token, row.monte_carlo_error)
        + (row.perplexity, row.bits_per_byte, row.bits_per_character)
        for row in likelihoods
    ]
    return Table("likelihood", columns, tuple(rows)).without_empty_columns()


def contribution_table(likelihoods: Iterable[Likelihood]) -> Table:
    rows = [
        (row.source.label, row.corpus, row.variant or None, part, nats)
        for row in likelihoods
        for part, nats in row.parts.items()
    ]
    return Table("contribution", ("run", "corpus", "bound", "part", "nats per token"), tuple(rows)).without_empty_columns()


def throughput(results: Results, art: Art) -> Section:
    name, heading = "throughput", "Throughput"
    trainings, samples = results.of(Training), results.of(Samples)
    tables = [table for table in (training_speed_table(trainings), sampling_speed_table(samples)) if table.rows]
    if not tables:
        return Section(
            name, heading, (Missing("No speed was measured; sampling and training do:", "python main.py mode=train"),)
        )
    draw = lambda: throughput_figure(trainings, samples, art.colours)
    drawn = art.picture("throughput", draw, "training tokens per second, and milliseconds per sample by steps")
    return Section(name, heading, (drawn, *map(Grid, tables)))


def training_speed_table(trainings: Sequence[Training]) -> Table:
    rows = [(run.source.label, run.tokens_per_second) for run in trainings if run.tokens_per_second is not None]
    return Table("training_speed", ("run", "training tokens per second"), tuple(rows))


def sampling_speed_table(samples: Sequence[Samples]) -> Table:
    columns = ("run", "device", "steps", "ms per sample", "tokens per second", "network evaluations", "samples")
    rows = []
    for run in samples:
        device = run.source.content.get("device")
        named: Cell = device[:80] if isinstance(device, str) else None
        for one in run.generated:
            if one.ms_per_sample is not None:
                numbers = (one.steps, one.ms_per_sample, one.tokens_per_second, one.network_evaluations, one.count)
                rows.append((run.source.label, named, *numbers))
    return Table("sampling_speed", columns, tuple(rows)).without_empty_columns()
