"""Rankings of runs by several ways of comparing them, and sentences on the pairs of runs whose order depends on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

_OWN = ("run", "target", "target_entropy_nats", "ppl", "log_ppl", "log_ppl_error", "crossings")
RAW = "raw perplexity, plain policy"
BEST = "equal entropy, each at its best policy"


@dataclass(frozen=True)
class Ranking:
    """Log perplexities of the runs that one way of comparing covers, and their standard errors (0 if not known)."""

    by: str
    steps: str
    log_ppl: Mapping[str, float]
    errors: Mapping[str, float]

    @property
    def order(self) -> list[str]:
        """Runs by rising log perplexity."""
        return sorted(self.log_ppl, key=lambda run: self.log_ppl[run])

    def apart(self, a: str, b: str) -> bool:
        """Whether two runs are more than two standard errors apart."""
        error = (self.errors[a] ** 2 + self.errors[b] ** 2) ** 0.5
        return abs(self.log_ppl[a] - self.log_ppl[b]) > 2 * error


def rankings(
    points: Sequence[Mapping[str, Any]],
    matched: Sequence[Mapping[str, Any]],
    target: str,
    plain: Mapping[str, Any],
    fixed_steps: Sequence[str] = (),
) -> list[Ranking]:
    """Every way of comparing the runs of a sweep, for each number of steps.

    Args:
        points: as in frontier.json.
        matched: the rows of perplexities at equal entropies there.
        target: name of the entropy in those rows at which runs are compared.
        plain: default values of the swept options. The raw perplexity of a run is that of its first point with these.
        fixed_steps: runs whose sampler ignores the number of steps. They are compared with the others at every number.
    """
    found: list[Ranking] = []
    all_steps = dict.fromkeys(row["settings"]["steps"] for row in points if row["settings"]["run"] not in fixed_steps)
    for steps in all_steps or dict.fromkeys(row["settings"]["steps"] for row in points):
        raw: dict[str, tuple[float, float]] = {}
        for point in points:
            settings = point["settings"]
            options = {key: value for key, value in settings.items() if key not in ("run", "steps")}
            if _beside(settings, steps, fixed_steps) and all(plain.get(key, value) == value for key, value in options.items()):
                raw.setdefault(settings["run"], _value(point["log_ppl"]["mean"], point["log_ppl"]["standard_error"]))
        found.append(_ranking(RAW, steps, raw))
        by_policy: dict[str, dict[str, tuple[float, float]]] = {}
        best: dict[str, tuple[float, float]] = {}
        rows = [row for row in matched if row["target"] == target and row["ppl"] is not None]
        rows = [row for row in rows if _beside({"steps": steps} | dict(row), steps, fixed_steps)]
        for row in rows:
            value = _value(row["log_ppl"], row["log_ppl_error"])
            by_policy.setdefault(_policy(row), {})[row["run"]] = value
            best[row["run"]] = min(best.get(row["run"], value), value)
        found += [_ranking(f"equal entropy, {policy or 'one policy'}", steps, values) for policy, values in by_policy.items()]
        if len(by_policy) > 1:
            found.append(_ranking(BEST, steps, best))
    return [ranking for ranking in found if len(ranking.log_ppl) > 1]


def changes(found: Sequence[Ranking]) -> list[str]:
    """A sentence for each pair of runs whose order differs between two rankings with the same number of steps."""
    said: dict[str, None] = {}
    for one, other in combinations(found, 2):
        if one.steps != other.steps:
            continue
        both = [run for run in one.order if run in other.log_ppl]
        for a, b in combinations(both, 2):  # a is before b in `one`
            if other.log_ppl[a] > other.log_ppl[b]:
                sure = "" if one.apart(a, b) and other.apart(a, b) else " (within two standard errors in one of them)"
                said[f"{one.steps} steps: {a} is ahead of {b} by {one.by}, and behind it by {other.by}{sure}"] = None
    return list(said)


def _beside(settings: Mapping[str, Any], steps: Any, fixed_steps: Sequence[str]) -> bool:
    return settings["steps"] == steps or settings["run"] in fixed_steps


def _policy(row: Mapping[str, Any]) -> str:
    """The settings of a matched row except the one along which it is interpolated."""
    along = {key.removeprefix("closest_") for key in row if key.startswith("closest_")}
    rest = {key: value for key, value in row.items() if key not in (*_OWN, "steps", *along) and not key.startswith("closest_")}
    return ", ".join(f"{key} {'null' if value is None else value}" for key, value in rest.items())


def _value(log_ppl: float, error: float | None) -> tuple[float, float]:
    return log_ppl, error or 0.0


def _ranking(by: str, steps: Any, values: Mapping[str, tuple[float, float]]) -> Ranking:
    return Ranking(by, str(steps), {run: v[0] for run, v in values.items()}, {run: v[1] for run, v in values.items()})
