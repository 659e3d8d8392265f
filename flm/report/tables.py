"""The tables of a report, from result records: one cell, one value, so that a page and a logger can both show them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flm.measures.estimate import Estimate
from flm.report.records import Answers, Frontier, Likelihood, Number, Results, Samples, TextSet, Training

Cell = Number | str | int

METRIC_NAMES = {
    "entropy_nats": "entropy, nats",
    "ngram_ce_nats": "3-gram CE, nats",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "self_bleu_4": "self-BLEU-4",
    "rep_4": "rep-4",
    "longest_run": "longest run",
    "longest_run_of_all": "longest run of all",
    "distinct_tokens": "distinct tokens",
    "tokens_used": "tokens used",
    "token_js_bits": "token JS, bits",
    "mauve": "MAUVE",
}


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns; `name` is an identifier."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def without_empty_columns(self) -> "Table":
        kept = [i for i in range(len(self.columns)) if any(row[i] is not None for row in self.rows)]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return Table(self.name, tuple(self.columns[i] for i in kept), rows)


def runs_table(results: Results) -> Table:
    """A row for each checkpoint and each training run, with the kinds of result there are of it."""
    columns = ("run", "algorithm", "data", "steps trained", "checkpoint SHA-256", "results", "seed", "device", "dtype", "code")
    merged: dict[tuple[str, str | None], list[list[Cell]]] = {}
    for source in results.sources:
        revision = source.get("git_revision")
        shared = [source.kind, source.get("seed"), source.get("device"), source.get("dtype")]
        shared += [revision and _short_revision(revision)]
        checkpoints = source.get("checkpoints")  # of a sweep over several
        if source.sha256 is None and checkpoints:
            models = [(str(run), c["algorithm"], c["step"], c["sha256"]) for run, c in checkpoints.items()]
        else:
            models = [(source.label, source.algorithm, source.step, source.sha256)]
        for label, algorithm, step, sha in models:
            row = [label, algorithm, source.data, step, sha and sha[:12], *shared]
            merged.setdefault((label, sha), []).append(row)
    rows = [tuple(map(_joined, zip(*found, strict=True))) for found in merged.values()]
    return Table("runs", columns, tuple(rows)).without_empty_columns()


def _joined(cells: Iterable[Cell]) -> Cell:
    """The one value there is, else all of them in words."""
    values = list(dict.fromkeys(cell for cell in cells if cell is not None))
    return values[0] if len(values) == 1 else ", ".join(map(str, values)) or None


def commands(results: Results) -> list[tuple[str, str]]:
    """(run, command) of each command, once."""
    return list(dict.fromkeys((source.label, source.command) for source in results.sources if source.command))


def frontier_table(frontiers: Sequence[Frontier]) -> Table:
    """Perplexity at matched entropies, of one scorer."""
    known = {"target", "target_entropy_nats", "ppl", "log_ppl", "log_ppl_error", "crossings", "run"}
    matched = [(frontier, row) for frontier in frontiers for row in frontier.matched]
    swept = {along for frontier in frontiers for along in frontier.along.values()}
    settings = [key for _, row in matched for key in row if key not in known | swept and not key.startswith("closest_")]
    settings = list(dict.fromkeys(settings))
    columns = ("run", *settings, "at the entropy of", "nats", "ppl", "log ppl", "standard error")
    columns += (*sorted(swept), "closest reached")
    rows = []
    for frontier, row in matched:
        closest = None
        if row.get("ppl") is None and row.get("closest_ppl") is not None:
            closest = f"ppl {row['closest_ppl']:.1f} at {row['closest_entropy_nats']:.2f} nats"
        run = frontier.run_of(row)
        numbers = [row.get(key) for key in ("ppl", "log_ppl", "log_ppl_error", *sorted(swept))]
        named = (_plain(row.get(key)) for key in settings)
        rows.append((run, *named, row["target"], row["target_entropy_nats"], *numbers, closest))
    return Table("frontier", columns, tuple(rows)).without_empty_columns()


def diversity_table(samples: Sequence[Samples]) -> Table:
    """All measures of all sets of texts; real text in the last row of each run."""
    texts = [one for run in samples for one in _with_real(run)]
    present = {name for one in texts for name in one.metrics}
    metrics = [name for name in METRIC_NAMES if name in present]
    metrics += sorted(present - set(metrics))
    scorers = list(dict.fromkeys(scorer for one in texts for scorer in one.perplexity))
    named = tuple(METRIC_NAMES.get(name, name.replace("_", " ")) for name in metrics)
    columns = ("run", "steps", "texts", *(f"gen. ppl ({scorer})" for scorer in scorers), *named)
    rows = []
    for run in samples:
        for one in _with_real(run):
            steps = "real text" if one.steps is None else one.steps
            numbers = (*(one.perplexity.get(scorer) for scorer in scorers), *(one.metrics.get(name) for name in metrics))
            rows.append((run.source.label, steps, one.count, *numbers))
    return Table("diversity", columns, tuple(rows)).without_empty_columns()


def cross_entropy_table(trainings: Sequence[Training]) -> Table:
    """A row for each part of the clock; two columns for each run."""
    edges = sorted({(b.low, b.high) for run in trainings for b in run.by_tau})
    columns, values = ["tau"], []
    for run in trainings:
        by_edge = {(b.low, b.high): b for b in run.by_tau}
        columns += [run.source.label, f"{run.source.label}, without context"]
        values.append([by_edge[edge].value if edge in by_edge else None for edge in edges])
        values.append([by_edge[edge].context_free if edge in by_edge else None for edge in edges])
    rows = zip([f"{low:.1f} to {high:.1f}" for low, high in edges], *values, strict=True)
    return Table("cross_entropy", tuple(columns), tuple(rows)).without_empty_columns()


def training_speed_table(trainings: Sequence[Training]) -> Table:
    rows = [(run.source.label, run.tokens_per_second) for run in trainings if run.tokens_per_second is not None]
    return Table("training_speed", ("run", "training tokens per second"), tuple(rows))


def sampling_speed_table(samples: Sequence[Samples]) -> Table:
    columns = ("run", "device", "steps", "ms per sample", "tokens per second", "network evaluations", "samples")
    rows = [
        (run.source.label, run.source.get("device"), one.steps, one.ms_per_sample, one.tokens_per_second)
        + (one.network_evaluations, one.count)
        for run in samples
        for one in run.generated
        if one.ms_per_sample is not None
    ]
    return Table("sampling_speed", columns, tuple(rows)).without_empty_columns()


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


def answers_table(name: str, answers: Sequence[Answers], asked: str) -> Table:
    """A row for each set of answers; `asked` says what they answer."""
    scores = list(dict.fromkeys(score for one in answers for score in one.scores))
    rows = [
        (one.source.label, ", ".join(f"{key}={value}" for key, value in one.options.items()) or None, one.steps)
        + (one.asked, one.samples, *(one.scores.get(score) for score in scores))
        for one in answers
    ]
    return Table(name, ("run", "sampling", "steps", asked, "answers to each", *scores), tuple(rows)).without_empty_columns()


def number(value: float) -> str:
    """Enough digits to compare: whole numbers in full, others to four significant figures, below 1 to three."""
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.2e}" if value else "0"
    return f"{value:#.4g}" if abs(value) >= 1 else f"{value:#.3g}"


def markdown(table: Table) -> str:
    """A heading and the table, in Markdown."""
    rows = [table.columns, ["---"] * len(table.columns), *([_text(cell) for cell in row] for row in table.rows)]
    lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"## {table.name.replace('_', ' ')}\n\n{lines}"


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, Estimate):
        error = "" if cell.standard_error is None else f" +- {cell.standard_error:.2g}"
        return number(cell.mean) + error
    return " ".join(cell.replace("|", "\\|").split()) if isinstance(cell, str) else number(cell)


def _short_revision(revision: str) -> str:
    commit, dash, mark = revision.partition("-")
    return commit[:10] + dash + mark


def _with_real(run: Samples) -> list[TextSet]:
    return [*run.generated, *([run.real] if run.real is not None else [])]


def _plain(value: object) -> Cell:
    return value if value is None or isinstance(value, int | float | str) else str(value)
