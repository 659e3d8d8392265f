"""The first section of a report: the main numbers, the runs with their status, and the commands."""

from collections.abc import Iterable, Iterator

from flm.report.comparison import Compared, compared
from flm.report.frontier.result_kind import Frontier
from flm.report.kinds.samples import Samples
from flm.report.kinds.training import Training
from flm.report.labels import in_words
from flm.report.page import Card, Commands, Grid, Section, Tile
from flm.report.records import Results
from flm.report.tables import rank
from flm.results.kinds import Cell, KeyNumber, Table

TILES = 8


def overview(results: Results) -> Section:
    table = runs_table(results)
    commands = dict.fromkeys((source.label, source.command) for source in results.sources if source.command)
    blocks = [Grid(table)]
    if tiles := card(results):
        blocks.insert(0, Card(tuple(tiles)))
    return Section("runs", "What was run", (*blocks, *([Commands(tuple(commands))] if commands else [])))


def card(results: Results) -> list[Tile]:
    """The best number of each main measure, with the run that has it."""
    rows = compared(results)
    tiles = [
        _status(results.of(Training)),
        *_least_bits(rows),
        _matched(rows, results.of(Frontier)),
        _samples(results) if not results.of(Frontier) else None,
        *_others(results),
        _fastest(rows),
        _speed(rows),
    ]
    return [tile for tile in tiles if tile is not None][:TILES]


def runs_table(results: Results) -> Table:
    """A row for each checkpoint and each training run, with the kinds of its results."""
    columns = ("run", "algorithm", "data", "status", "steps trained", "checkpoint SHA-256", "differs in", "results")
    columns += ("seed", "device", "dtype", "weights", "processes", "code")
    trainings = {run.source.path: run for run in results.of(Training)}
    sweeps = {frontier.source.path: frontier for frontier in results.of(Frontier)}
    merged: dict[tuple[str, str | None], list[list[Cell]]] = {}
    for source in results.sources:
        status, step = None, source.step
        if source.path in trainings:
            found = trainings[source.path].status
            status, step = _in_a_word(trainings[source.path]), found.step
        revision = _text(source.content.get("git_revision"))
        differs = in_words(dict(list(results.differences.get(source.label, {}).items())[:TILES])) or None
        shared = [differs, source.kind.replace("_", " "), source.seed]
        shared += [_text(source.content.get(key)) for key in ("device", "dtype", "weights", "processes")]
        shared += [revision and _short_revision(revision)]
        models = [(source.label, source.algorithm, step, source.sha256)]
        if source.path in sweeps and sweeps[source.path].models:
            models = [(run, m.algorithm, m.step, m.sha256) for run, m in sweeps[source.path].models.items()]
        for label, algorithm, trained, sha in models:
            row = [label, algorithm, source.data, status, trained, sha and sha[:12], *shared]
            merged.setdefault((label, sha), []).append(row)
    rows = [tuple(map(_joined, zip(*found, strict=True))) for found in merged.values()]
    return Table("runs", columns, tuple(rows)).without_empty_columns()


def _status(trainings: list[Training]) -> Tile | None:
    if not trainings:
        return None
    if len(trainings) == 1:
        found = trainings[0].status
        about = f"{found.step:,} of {found.max_steps:,} steps" if found.step is not None and found.max_steps else ""
        about = about or (f"{found.step:,} steps" if found.step is not None else "")
        return Tile("training", found.word, ": ".join(part for part in (about, found.reason) if part))
    words = [run.status.word for run in trainings]
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    return Tile("training runs", len(trainings), counts)


def _least_bits(rows: list[Compared]) -> Iterator[Tile]:
    """The lowest bits per character on each corpus, since bits of different texts do not compare."""
    for corpus in dict.fromkeys(row.likelihood.corpus for row in rows if row.likelihood is not None):
        found = [(row, one) for row in rows if (one := row.likelihood) is not None and one.corpus == corpus]
        cells = [(row, one, cell) for row, one in found if (cell := one.with_error(one.bits_per_character)) is not None]
        if cells:
            row, one, cell = min(cells, key=lambda found: rank(_value(found[2])))
            yield Tile("bits per character", cell, _of(row.label, rows, one.bound, corpus))


def _matched(rows: list[Compared], frontiers: list[Frontier]) -> Tile | None:
    found = [(one.ppl, row.label, steps) for row in rows for steps, one in row.quality.items() if one.reached]
    if not found:
        return None
    ppl, label, steps = min(found, key=lambda one: rank(one[0]))
    about = _of(label, rows, f"{steps} steps", f"scored by {frontiers[0].scorer}")
    return Tile("perplexity at the entropy of real text", ppl, about)


def _samples(results: Results) -> Tile | None:
    """The lowest generative perplexity of measured samples, with its entropy, without which it means little."""
    found = [
        (ppl, run, one, scorer)
        for run in results.of(Samples)
        for one in run.generated
        for scorer, ppl in one.perplexity.items()
        if ppl is not None
    ]
    if not found:
        return None
    scorer, data = found[0][3], found[0][1].source.data
    alike = [row for row in found if row[3] == scorer and row[1].source.data == data]
    ppl, run, one, _ = min(alike, key=lambda row: rank(row[0]))
    entropy, real = one.metrics.get("entropy_nats"), run.real and run.real.metrics.get("entropy_nats")
    about = [f"{one.steps} steps", f"scored by {scorer}"]
    about += [f"entropy {_value(entropy):.2f} nats"] if entropy is not None else []
    about += [f"real text {_value(real):.2f}"] if real is not None else []
    return Tile("generative perplexity", ppl, _of(run.source.label, results.runs, *about))


def _others(results: Results) -> list[Tile]:
    """The first number of each kind that no tile is made for, of the best run on each data."""
    shown = {"training", "sample_eval", "frontier", "likelihood", "film"}
    best: dict[tuple[str, str, str | None], tuple[str, KeyNumber]] = {}
    for source, reading in results.read:
        for number in [] if source.kind in shown else [one for one in reading.numbers if one.value is not None][:1]:
            place = source.kind, number.name, source.data
            known = best.get(place)
            if known is None or (number.better is not None and _is_better(number, known[1])):
                best[place] = (source.label, number)
    several = {name for kind, name, data in best if (kind, name) in [other[:2] for other in best if other[2] != data]}
    return [
        Tile(number.name, number.value, _of(run, results.runs, number.setting, data or "" if name in several else ""))
        for (_, name, data), (run, number) in best.items()
    ]


def _is_better(one: KeyNumber, other: KeyNumber) -> bool:
    sign = -1 if one.better == "higher" else 1
    return rank(sign * _value(one.value)) < rank(sign * _value(other.value))


def _fastest(rows: list[Compared]) -> Tile | None:
    found = [(cost, row.label, steps) for row in rows for steps, cost in row.ms_per_sample.items()]
    if not found:
        return None
    cost, label, steps = min(found, key=lambda one: rank(one[0]))
    return Tile("milliseconds per sample", cost, _of(label, rows, f"{steps} step{'s' * (steps != 1)}"))


def _speed(rows: list[Compared]) -> Tile | None:
    found = [(row.training_tokens_per_second, row.label) for row in rows if row.training_tokens_per_second is not None]
    if not found:
        return None
    speed, label = min(found, key=lambda one: rank(-one[0]))
    return Tile("training tokens per second", speed, _of(label, rows))


def _of(label: str, rows: list[Compared] | list[str], *parts: str) -> str:
    """Whose number it is, where there are several."""
    return ", ".join(part for part in ([label] if len(rows) > 1 else []) + list(parts) if part)


def _value(cell: Cell) -> float:
    return float(getattr(cell, "mean", cell))  # type: ignore[arg-type]


def _in_a_word(run: Training) -> str:
    found = run.status
    done = f" at {found.step:,} of {found.max_steps:,}" if found.word != "finished" and found.step and found.max_steps else ""
    return f"{found.word}{done}" + (f": {found.reason}" if found.reason else "")


def _joined(cells: Iterable[Cell]) -> Cell:
    """The one value there is, else all of them in words."""
    values = list(dict.fromkeys(cell for cell in cells if cell is not None))
    return values[0] if len(values) == 1 else ", ".join(map(str, values)) or None


def _text(value: object) -> Cell:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return value[:80] if isinstance(value, str) else None


def _short_revision(revision: Cell) -> str:
    commit, dash, mark = str(revision).partition("-")
    return commit[:10] + dash + mark
