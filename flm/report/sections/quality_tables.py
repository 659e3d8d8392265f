"""Tables of the quality of samples: perplexity at equal entropies, and all measures beside those of real text."""

from collections.abc import Sequence

from flm.measures.estimate import Estimate
from flm.report.frontier.curves import Curve
from flm.report.frontier.result_kind import Frontier
from flm.report.kinds.samples import Samples, TextSet
from flm.results.kinds import Cell, Table

METRIC_NAMES = {
    "entropy_nats": "entropy, nats",
    "ngram_ce_nats": "3-gram CE, nats",
    "ngram_gain_nats": "gain of 3-grams over 1-grams, nats",
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
_MATCH = {"target", "target_entropy_nats", "ppl", "log_ppl", "log_ppl_error", "crossings", "run"}


def frontier_table(name: str, frontiers: Sequence[Frontier]) -> Table:
    """Perplexity at equal entropies by one scorer."""
    matched = [row for frontier in frontiers for row in frontier.matched]
    swept = sorted({curve.along for frontier in frontiers for curve in frontier.curves})
    settings = [key for row in matched for key in row if key not in _MATCH and not key.startswith("closest_")]
    settings = [key for key in dict.fromkeys(settings) if key not in swept]
    columns = ("run", *settings, "at the entropy of", "nats", "ppl", "log ppl", "standard error", *swept, "closest reached")
    rows = []
    for row in matched:
        closest, entropy = row.get("closest_ppl"), row.get("closest_entropy_nats")
        near = None if row["ppl"] is not None or None in (closest, entropy) else f"ppl {closest:.1f} at {entropy:.2f} nats"
        numbers = (_plain(row.get(key)) for key in ("ppl", "log_ppl", "log_ppl_error", *swept))
        named = (_plain(row.get(key)) for key in settings)
        rows.append((row["run"], *named, row["target"], row["target_entropy_nats"], *numbers, near))
    return Table(name, columns, tuple(rows)).without_empty_columns()


def nulls_table(name: str, nulls: Sequence[Curve]) -> Table:
    """Texts that no model wrote, a row for each size."""
    rows = [
        (
            str(curve.settings["run"]),
            point.settings["size"],
            Estimate(point.entropy, point.entropy_error, 0),
            Estimate(point.log_ppl, point.log_ppl_error, 0),
            "yes" if point.repeats_more else "no",
        )
        for curve in nulls
        for point in curve.points
    ]
    return Table(name, ("no model", "size", "entropy, nats", "log ppl", "repeats more than real text"), tuple(rows))


def diversity_table(samples: Sequence[Samples]) -> Table:
    """All measures of all sets of texts. The last row of each run is real text."""
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
            steps: Cell = "real text" if one.steps is None else one.steps
            numbers = (*(one.perplexity.get(scorer) for scorer in scorers), *(one.metrics.get(name) for name in metrics))
            rows.append((run.source.label, steps, one.count, *numbers))
    return Table("diversity", columns, tuple(rows)).without_empty_columns()


def _with_real(run: Samples) -> list[TextSet]:
    return [*run.generated, *([run.real] if run.real is not None else [])]


def _plain(value: object) -> Cell:
    return str(value) if isinstance(value, bool) else value  # type: ignore[return-value]
