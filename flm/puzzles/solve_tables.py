"""Tables of mode=solve_eval for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table


def percent(estimate: Mapping[str, Any] | None) -> str:
    """A share as "58.0 ± 1.6" per cent; very small ones as "1.2e-05"."""
    if estimate is None:
        return ""
    mean, error = 100 * estimate["mean"], estimate["standard_error"]
    if 0 < mean < 0.05:
        return f"{mean:.1e}"
    return f"{mean:.1f}" if not error else f"{mean:.1f} ± {100 * error:.1f}"


def puzzle_table(found: Mapping[str, Any], label: str) -> Table:
    """Rates of solved puzzles in per cent, with a row for each number of steps and each control."""
    ks = list(next(iter(found["by_steps"].values()))["pass_at"])
    rates = ("solved", "valid", "kept", "agrees", *(f"pass@{k}" for k in ks if found["samples"] > 1))
    rows = []
    for name, entry in (*found["by_steps"].items(), *found["controls"].items()):
        shares = [percent(entry[key]) for key in ("solved", "valid", "consistent", "agrees")]
        passed = [percent(entry["pass_at"].get(k)) for k in ks if found["samples"] > 1]
        rows.append([*_who(name, entry), *shares, *passed, f"{entry['ms_per_puzzle']:.3g}" if "steps" in entry else ""])
    return _table(f"{label}: {found['count']} held-out puzzles, %", ("", "calls", *rates, "ms"), rows)


def written_table(found: Mapping[str, Any], label: str) -> Table:
    """Valid answers without givens and their diversity, with a row for each number of steps and each control."""
    rows = []
    for name, entry in (*found["by_steps"].items(), *found["controls"].items()):
        entropy, largest, held_out = (entry.get(key) for key in ("entropy_nats", "largest_share", "held_out"))
        spread = [
            "" if entropy is None else f"{entropy:.2f}",
            *("" if x is None else f"{100 * x:.1f}" for x in (largest, held_out)),
        ]
        time = f"{entry['ms_per_answer']:.3g}" if "steps" in entry else ""
        rows.append([*_who(name, entry), percent(entry["valid"]), str(entry.get("distinct", "")), *spread, time])
    title = f"{label}: {found['count']} from nothing; all there are: {found['space_nats']:.2f} nats"
    return _table(title, ("", "calls", "valid, %", "distinct", "nats", "most, %", "unseen, %", "ms"), rows)


def _who(name: str, entry: Mapping[str, Any]) -> list[str]:
    """The name of a row and its number of network calls."""
    if "steps" not in entry:
        return [name, ""]
    return [f"{name} step{'s' * (name != '1')}", f"{entry['evaluations']:g}"]


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without the columns that have no entry."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)  # fits 80 columns
    kept = [i for i, heading in enumerate(headings) if not heading or any(row[i] for row in rows)]
    for i in kept:
        table.add_column(headings[i], justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[i] for i in kept))
    return table
