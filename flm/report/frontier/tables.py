"""A frontier as tables, for frontier.md and for the console."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from flm.annotations import shown

MATCHED_HEADINGS = ("run", "settings", "entropy", "target", "ppl", "+- log ppl", "at", "closest")


def matched_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of text under MATCHED_HEADINGS: the perplexity if the sweep reaches the entropy, else the closest point."""
    fixed = ("run", "target", "target_entropy_nats", "ppl", "log_ppl", "log_ppl_error", "crossings")
    cells = []
    for row in rows:
        along = next(name.removeprefix("closest_") for name in reversed(row) if name.startswith("closest_"))
        rest = {key: value for key, value in row.items() if key not in (*fixed, along) and not key.startswith("closest_")}
        closest = row["closest_ppl"]
        cells.append(
            [
                row["run"],
                ", ".join(f"{key} {_short(value)}" for key, value in rest.items()),
                f"{row['target_entropy_nats']:.3f}",
                row["target"],
                "not reached" if row["ppl"] is None else f"{row['ppl']:.2f}",
                "" if row["log_ppl_error"] is None else f"{row['log_ppl_error']:.3f}",
                "" if row[along] is None else f"{along} {row[along]:.3g}",
                "" if closest is None else f"{closest:.2f} at entropy {row['closest_entropy_nats']:.3f}",
            ]
        )
    return cells


def markdown(content: Mapping[str, Any], count: int, seed: int) -> str:
    """The tables of frontier.md."""
    scorer = content["scorer"]
    lines = [
        f"# Frontier: {content['label']}",
        "",
        f"Perplexity by {scorer['name']} ({scorer['protocol']}), {count} samples a setting, seed {seed}. "
        "Entropy: unigram entropy within a sample, nats.",
        "",
    ]
    if content["real"] is not None:
        entropy, judged = (content["real"][key]["mean"] for key in ("entropy_nats", "log_ppl"))
        used, js = (content["real"][key] for key in ("tokens_used", "token_js_bits"))
        spread = f"{used} different tokens" + ("" if js is None else f", token JS {js:.3f} bits")
        lines += [f"Real text: entropy {entropy:.3f}, {spread}, log perplexity {judged:.3f}.", ""]
    if content["matched"]:
        nulls = [row for row in content["nulls_matched"] if row["ppl"] is not None]
        cells = matched_cells(content["matched"]) + [[f"no model: {name}", *rest] for name, *rest in matched_cells(nulls)]
        lines += ["## At equal entropy", "", *_markdown_table(MATCHED_HEADINGS, cells), ""]
    if content["rankings"]:
        lines += ["## Who is ahead", "", *(f"- {said}." for said in ranked(content)), ""]
    lines += ["## All settings", "", "x: repeats 2-grams or 4-grams more than real text, by two standard errors.", ""]
    lines += [*_points_table(content["points"]), ""]
    if content["nulls"]:
        said = "A model has shown something only if its perplexity is lower than these at the same entropy."
        lines += ["## No model", "", said, "", *_points_table(content["nulls"]), ""]
    return "\n".join(lines)


def ranked(content: Mapping[str, Any]) -> list[str]:
    """The rankings, and the pairs of runs whose order differs between them, in words."""
    orders = [f"{one['steps']} steps, by {one['by']}: {' < '.join(one['order'])}" for one in content["rankings"]]
    return orders + (content["ranking_changes"] or ["No two runs change places with the policy"])


def _points_table(points: Sequence[Mapping[str, Any]]) -> list[str]:
    settings = list(dict.fromkeys(key for point in points for key in point["settings"]))
    headings = [
        *settings,
        "",
        "entropy",
        "log ppl",
        "+-",
        "tokens used",
        "token JS",
        "distinct-2",
        "rep-2",
        "rep-4",
        "self-BLEU-4",
    ]
    with_mauve = any(point.get("mauve") is not None for point in points)
    headings += ["MAUVE"] if with_mauve else []
    rows = []
    for point in points:
        values = [_short(point["settings"].get(key, "")) for key in settings]
        error, bleu, js = point["log_ppl"]["standard_error"], point["self_bleu_4"], point["token_js_bits"]
        rows.append(
            [
                *values,
                "x" if point["repeats_more"] else "",
                f"{point['entropy_nats']['mean']:.3f}",
                f"{point['log_ppl']['mean']:.3f}",
                "" if error is None else f"{error:.3f}",
                f"{point['tokens_used']:.9g}",
                "" if js is None else f"{js:.3f}",
                "" if point["distinct_2"] is None else f"{point['distinct_2']:.3f}",
                f"{point['rep_2']['mean']:.3f}",
                f"{point['rep_4']['mean']:.3f}",
                "" if bleu is None else f"{bleu['mean']:.1f}",
                *([f"{point['mauve']:.3f}"] if with_mauve else []),
                *([f"{point['ms_per_sample']:.1f}"] if "ms_per_sample" in point else []),
            ]
        )
    return _markdown_table([*headings, "ms / sample"] if "ms_per_sample" in points[0] else headings, rows)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else shown(value)


def console_table(content: Mapping[str, Any]) -> Table:
    table = Table(title=f"perplexity at equal entropy; {content['scorer']['name']}")
    for heading in MATCHED_HEADINGS:
        table.add_column(heading)
    for cells in matched_cells(content["matched"]):
        table.add_row(*(escape(cell) for cell in cells))
    return table


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]
