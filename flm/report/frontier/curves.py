"""Generative perplexity at matched entropy: curves instead of points.

A sampler trades perplexity for entropy (0.3 nats of entropy are worth about a factor 3 in perplexity), so single
numbers of two models compare their temperatures as much as the models. A sweep over temperature draws a curve of
(entropy, log perplexity); two curves are compared where they have the same entropy (arXiv 2604.02718).

Between neighbours of a sweep, log perplexity is interpolated linearly in entropy. It is never extrapolated: if a sweep does not
reach an entropy, its closest point is reported, and marked as such. A sweep whose entropy is not monotonic may cross a target
more than once. Each crossing is a usable setting, so the lowest perplexity counts, and the number of crossings is reported.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Point:
    """One setting of a sampler, measured.

    Attributes:
        settings: by name: run, steps, temperature, churn, ...
        entropy: unigram entropy of the samples in nats.
        log_ppl: log generative perplexity, nats per scored token.
        entropy_error, log_ppl_error: their standard errors; None: not known.
        repeats_more: whether the samples repeat more than real text does.
    """

    settings: Mapping[str, Any]
    entropy: float
    log_ppl: float
    entropy_error: float | None = None
    log_ppl_error: float | None = None
    repeats_more: bool = False

    def __post_init__(self):
        if not (math.isfinite(self.entropy) and math.isfinite(self.log_ppl)):
            raise ValueError(f"{dict(self.settings)}: entropy {self.entropy} and log ppl {self.log_ppl} must be finite")


@dataclass(frozen=True)
class Curve:
    """Points that differ only in the setting `along`, sorted by it; `settings` are the others."""

    settings: Mapping[str, Any]
    along: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Match:
    """A curve at one entropy.

    Attributes:
        entropy: the target, nats.
        log_ppl: interpolated; None: the curve does not reach the target.
        standard_error: of log_ppl, with the errors of the two neighbours taken as independent; None: not known.
        along: the swept setting at the target, interpolated likewise, as a guess; None: not reached.
        crossings: how often the sweep crosses the target; log_ppl is that of the lowest crossing.
        closest: the point nearest in entropy (of equally near points the one of lowest perplexity); None: reached.
    """

    entropy: float
    log_ppl: float | None
    standard_error: float | None
    along: float | None
    crossings: int
    closest: Point | None


def curves(points: Iterable[Point], along: str = "temperature") -> list[Curve]:
    """Points grouped by all settings but `along`, in the order first met, each group sorted by `along`.

    Raises:
        ValueError: a point has no such number, or two agree in all settings.
    """
    groups: dict[tuple, list[Point]] = {}
    for point in points:
        if not isinstance(point.settings.get(along), int | float):
            raise ValueError(f"a point of the frontier has no number for {along}: {dict(point.settings)}")
        key = tuple(sorted((name, repr(value)) for name, value in point.settings.items() if name != along))
        groups.setdefault(key, []).append(point)
    made = []
    for members in groups.values():
        members.sort(key=lambda point: point.settings[along])
        for before, after in zip(members, members[1:], strict=False):
            if before.settings[along] == after.settings[along]:
                raise ValueError(f"two points of the frontier have the same settings: {dict(after.settings)}")
        rest = {name: value for name, value in members[0].settings.items() if name != along}
        made.append(Curve(rest, along, tuple(members)))
    return made


def match(curve: Curve, entropy: float) -> Match:
    """The curve at `entropy` nats: interpolated, never extrapolated."""
    points = curve.points
    pairs = list(zip(points, points[1:], strict=False)) or [(points[0], points[0])]
    # a point at the target counts in the pair that it begins, and the last point in the pair that it ends
    hits = [(a, b) for a, b in pairs if a.entropy == entropy or (a.entropy - entropy) * (b.entropy - entropy) < 0]
    if len(points) > 1 and points[-1].entropy == entropy:
        hits.append(pairs[-1])
    found = [_between(a, b, entropy, curve.along) for a, b in hits]
    if not found:
        closest = min(curve.points, key=lambda point: (abs(point.entropy - entropy), point.log_ppl))
        return Match(entropy, None, None, None, 0, closest)
    log_ppl, error, setting = min(found, key=lambda crossing: crossing[0])
    return Match(entropy, log_ppl, error, setting, len(found), None)


def frontier_table(points: Iterable[Point], entropies: Mapping[str, float], along: str = "temperature") -> list[dict[str, Any]]:
    """One row for each curve and target entropy, plain JSON values.

    Args:
        entropies: targets in nats by name, as {"data": 4.31, "5.0": 5.0}.

    Returns:
        The curve's settings, target and target_entropy_nats; ppl, log_ppl, log_ppl_error and the swept setting (None if the
        target is not reached); crossings; and closest_ppl, closest_entropy_nats, closest_<along> (None if it is reached).
    """
    rows = []
    for curve in curves(points, along):
        for name, entropy in entropies.items():
            found = match(curve, entropy)
            closest = found.closest
            rows.append(
                {
                    **curve.settings,
                    "target": name,
                    "target_entropy_nats": entropy,
                    "ppl": None if found.log_ppl is None else math.exp(found.log_ppl),
                    "log_ppl": found.log_ppl,
                    "log_ppl_error": found.standard_error,
                    along: found.along,
                    "crossings": found.crossings,
                    "closest_ppl": None if closest is None else math.exp(closest.log_ppl),
                    "closest_entropy_nats": None if closest is None else closest.entropy,
                    f"closest_{along}": None if closest is None else closest.settings[along],
                }
            )
    return rows


def _between(a: Point, b: Point, entropy: float, along: str) -> tuple[float, float | None, float]:
    """Log perplexity at `entropy` on the segment from a to b, its standard error, and the swept setting."""
    width = b.entropy - a.entropy
    share = (entropy - a.entropy) / width if width else 0.0
    slope = (b.log_ppl - a.log_ppl) / width if width else 0.0
    log_ppl = a.log_ppl + share * (b.log_ppl - a.log_ppl)
    setting = a.settings[along] + share * (b.settings[along] - a.settings[along])
    # d log_ppl / d log_ppl_a = 1 - share, d log_ppl / d entropy_a = -slope (1 - share); b likewise with share
    return log_ppl, _combined([(a, 1 - share), (b, share)], slope), setting


def _combined(shares: Sequence[tuple[Point, float]], slope: float) -> float | None:
    variance = 0.0
    for point, share in shares:
        if share == 0:
            continue
        if point.log_ppl_error is None or point.entropy_error is None:
            return None
        variance += share**2 * (point.log_ppl_error**2 + (slope * point.entropy_error) ** 2)
    return math.sqrt(variance)
