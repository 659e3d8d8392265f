"""Tables of mode=solve_eval for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def percent(estimate: Mapping[str, Any] | None) -> str:
    """A share as "58.0 ± 1.6"; enough digits for small ones."""
    if estimate is None:
        return ""
    mean, error = 100 * estimate["mean"], estimate["standard_error"]
    if 0 < mean < 0.05:
        return f"{mean:.1e}"
    return f"{mean:.1f}" if not error else f"{mean:.1f} ± {100 * error:.1f}"


def puzzle_table(found: Mapping[str, Any], label: str) -> Table:
    """Rates of solved puzzles, a row for each number of steps and each control; per cent."""
    ks = list(next(iter(found["by_steps"].values()))["pass_at"])
    table = Table(title=f"{label}: {found['count']} held-out puzzles, % with standard error")
    for heading in (
        "",
        "evaluations",
        "solved",
        "valid",
        "clues kept",
        "as reference",
        *(f"pass@{k}" for k in ks),
        "ms / puzzle",
    ):
        table.add_column(heading, justify="right")
    for name, entry in (*found["by_steps"].items(), *found["controls"].items()):
        rates = [percent(entry[key]) for key in ("solved", "valid", "consistent", "agrees")]
        passed = [percent(entry["pass_at"].get(k)) for k in ks]
        is_model = "evaluations" in entry
        evaluations = f"{entry['evaluations']:g}" if is_model else ""
        time = f"{entry['ms_per_puzzle']:.2f}" if is_model else ""
        table.add_row("steps " + name if is_model else name, evaluations, *rates, *passed, time)
    return table


def written_table(found: Mapping[str, Any], label: str) -> Table:
    """Shares of valid answers from nothing and their spread, a row for each number of steps and each control."""
    table = Table(title=f"{label}: {found['count']} written from nothing; all there are: ln = {found['space_nats']:.2f} nats")
    for heading in (
        "",
        "evaluations",
        "valid, %",
        "distinct",
        "entropy, nats",
        "most frequent, %",
        "held out, %",
        "ms / answer",
    ):
        table.add_column(heading, justify="right")
    for name, entry in (*found["by_steps"].items(), *found["controls"].items()):
        is_model = "evaluations" in entry
        entropy, largest, held_out = (entry.get(key) for key in ("entropy_nats", "largest_share", "held_out"))
        table.add_row(
            "steps " + name if is_model else name,
            f"{entry['evaluations']:g}" if is_model else "",
            percent(entry["valid"]),
            str(entry.get("distinct", "")),
            "" if entropy is None else f"{entropy:.2f}",
            "" if largest is None else f"{100 * largest:.1f}",
            "" if held_out is None else f"{100 * held_out:.1f}",
            f"{entry['ms_per_answer']:.2f}" if is_model else "",
        )
    return table
