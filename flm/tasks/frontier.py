"""mode=frontier: one or several checkpoints at many settings of the sampler, compared at equal entropy."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

from annotated_types import MinLen
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console

from flm.algos.algorithm import Algorithm
from flm.atomic import write_bytes, write_text
from flm.checkpoints.model_file import ModelSource
from flm.data.tokenizers import Tokenizer
from flm.measures.diversity import self_bleu_4, token_diversity
from flm.measures.estimate import Estimate
from flm.measures.frontier import Point, curves, frontier_table
from flm.measures.frontier_figure import frontier_figure, scorer_name
from flm.measures.plotting import png, run_colours, styled
from flm.ranges import DIFFERENT, NonNegative, Positive, Share, StepCounts, Text
from flm.samplers.canvas import Canvas
from flm.samplers.options import sampler_for
from flm.tasks.assemble import load_for_evaluation, run_dir
from flm.tasks.frontier_tables import console_table, markdown
from flm.tasks.generation import (
    Generation,
    canvas_of,
    generate,
    number_of_samples,
    possible_steps,
    sampler_options,
    step_counts,
    warm_up,
)
from flm.tasks.processes import Team, team_of
from flm.tasks.real_text import RealText, real_text
from flm.tasks.results import provenance, write_json
from flm.tasks.sample_eval import say_what_is_missing, write_texts
from flm.tasks.scoring import Measures, head, judges_of, measures, plain

AXES = ("temperature", "churn", "gamma")  # what may be swept beside steps, the one to interpolate along first


@dataclass(frozen=True)
class Run:
    """A checkpoint in the sweep.

    Attributes:
        steps: numbers of steps to sample with.
        options: of its sampler, those not swept.
        sweeps: values by name, of the swept options that its sampler has.
    """

    label: str
    algorithm: Algorithm
    file: ModelSource
    tokenizer: Tokenizer
    canvas: Canvas
    steps: list[int]
    options: dict[str, Any]
    sweeps: dict[str, list[float]]

    @property
    def along(self) -> str:
        """The setting whose neighbours are interpolated between."""
        return next((name for name in self.sweeps if len(self.sweeps[name]) > 1), next(iter(self.sweeps), "steps"))

    def settings(self) -> Iterator[dict[str, Any]]:
        for steps, *values in product(self.steps, *self.sweeps.values()):
            yield {"run": self.label, "steps": steps, **dict(zip(self.sweeps, values, strict=True))}

    def generate(self, settings: Mapping[str, Any], config: DictConfig, team: Team) -> Generation:
        swept = {name: settings[name] for name in self.sweeps}
        return generate(self.algorithm, self.canvas, settings["steps"], config, self.options | swept, team)


@dataclass(frozen=True)
class FrontierOptions:
    """The `frontier` config; keys explained there."""

    checkpoints: Mapping[str, Text] | None = None
    steps: StepCounts = (8, 32)
    temperature: Positive | Annotated[Sequence[Positive], MinLen(1), DIFFERENT] | None = 1.0
    churn: NonNegative | Annotated[Sequence[NonNegative], MinLen(1), DIFFERENT] | None = None
    gamma: Share | Annotated[Sequence[Share], MinLen(1), DIFFERENT] | None = None
    entropies: float | Annotated[Sequence[float], DIFFERENT] | None = ()


def frontier(config: DictConfig) -> dict[str, Any]:
    """Samples every setting of every checkpoint; writes run_dir/frontier.json, .md and .png, and prints the table.

    Log perplexity is that of the first scorer under the first protocol; without one, the cross-entropy under 3-grams of the
    validation text, and called so. Real text is that of the first checkpoint's data. Samples of point i are in
    run_dir/frontier-samples/<i>.jsonl. Of several processes each generates its share; the first one does all else, and the
    others return nothing.
    """
    with team_of(config) as team:
        return _frontier(config, team)


def _frontier(config: DictConfig, team: Team) -> dict[str, Any]:
    count, entropies, console = number_of_samples(config), target_entropies(config), Console(quiet=not team.is_first)
    runs = runs_of(config, console)
    if not team.is_first:
        for run in runs:
            warm_up(run.algorithm, run.canvas, config, run.options)
            for settings in run.settings():
                run.generate(settings, config, team)
        return {}
    first = runs[0]
    length = first.canvas.tokens.shape[1]
    judges = judges_of(config, first.tokenizer)
    real = real_text(config, first.file, first.tokenizer, length, count)
    measured = measures(config, judges, first.tokenizer, length, real)
    if not judges and measured.ngrams is None:
        reason = real if isinstance(real, str) else "one block of it is too little"
        raise ValueError(
            "mode=frontier needs a scorer: eval.gen_ppl_eval_model_name_or_path, eval.scorer=ar, or real text for the 3-gram "
            f"judge ({reason})"
        )
    folder = run_dir(config)
    (folder / "frontier-samples").mkdir(exist_ok=True)
    points: list[dict[str, Any]] = []
    for run in runs:
        warm_up(run.algorithm, run.canvas, config, run.options)
        for settings in run.settings():
            found = run.generate(settings, config, team)
            path = folder / "frontier-samples" / f"{len(points):03d}.jsonl"
            rows = found.tokens.tolist()
            texts = write_texts(path, rows, run.tokenizer)
            timing, diversity = found.timing(), token_diversity(rows)
            points.append(
                {
                    "settings": settings,
                    "count": len(rows),
                    "file": str(path.relative_to(folder)),
                    "entropy_nats": plain(diversity.entropy_nats),
                    "log_ppl": plain(log_ppl(measured, rows, texts, settings)),
                    "tokens_used": diversity.tokens_used,
                    "token_js_bits": None if measured.frequencies is None else measured.frequencies.js_bits(rows),
                    "distinct_2": diversity.distinct_2,
                    "self_bleu_4": plain(self_bleu_4(texts)),
                    "ms_per_sample": timing["ms_per_sample"],
                    "network_evaluations": timing["network_evaluations"],
                }
            )
    level = real_level(measured, real, first.tokenizer)
    targets = {f"{entropy:g}": entropy for entropy in entropies}
    if level is not None:
        targets = {"data": level["entropy_nats"]["mean"], **targets}
    content = head("frontier", config, first.algorithm, first.file, measured.first_scorer)
    content |= {
        "label": config.eval.label or ", ".join(run.label for run in runs),
        "algorithm": ", ".join(dict.fromkeys(type(run.algorithm).__name__ for run in runs)),
        "scorer": measured.first_scorer or (measured.ngrams and measured.ngrams.describe()),
        "checkpoints": {run.label: checkpoint_entry(run) for run in runs},
        "points": points,
        "real": level,
        "matched": matched(runs, points, targets),
    }
    if isinstance(real, str):
        content["real_unavailable"] = real
    path = folder / "frontier.json"
    write_json(path, provenance(config, first.file if len(runs) == 1 else None) | content)
    write_text(folder / "frontier.md", markdown(content, count, config.seed))
    write_bytes(folder / "frontier.png", drawn(runs, points, level, scorer_name(content["scorer"])))
    console.print(console_table(content))
    say_what_is_missing(real, count, config, console)
    console.print(f"frontier: {folder}")
    return content


def runs_of(config: DictConfig, console: Console) -> list[Run]:
    """All checkpoints, loaded, and every option they will be sampled with tried on their samplers.

    Raises:
        ValueError: a swept option that no sampler has, or checkpoints whose entropies are not of the same thing.
    """
    named = config.frontier.checkpoints or {}
    if not isinstance(named, Mapping):
        raise ValueError(f"frontier.checkpoints must be {{label: path, ...}}, not {named}")
    all_steps = step_counts(config.frontier.steps)
    wanted = {name: axis_values(config, name) for name in AXES if config.frontier[name] is not None}
    runs: list[Run] = []
    for label, path in (named or {None: config.eval.checkpoint_path}).items():
        here = OmegaConf.merge(config, {"eval": {"checkpoint_path": path}})
        lm = load_for_evaluation(here)
        algorithm, file, tokenizer = lm.algorithm, lm.source, lm.tokenizer
        options = sampler_options(config, file, algorithm)
        sweeps = {name: values for name, values in wanted.items() if has_option(algorithm, options | {name: values[0]})}
        for values in product(*sweeps.values()):
            sampler_for(algorithm, options | dict(zip(sweeps, values, strict=True)), "frontier")
        canvas = canvas_of(config, algorithm, tokenizer)
        label = str(label) if label is not None else config.eval.label or file.label
        steps = possible_steps(all_steps, algorithm, canvas, options, console)
        runs.append(Run(label, algorithm, file, tokenizer, canvas, steps, options, sweeps))
    for name in wanted:
        if not any(name in run.sweeps for run in runs):
            kinds = ", ".join(sorted({type(run.algorithm).__name__ for run in runs}))
            raise ValueError(f"frontier.{name}: no sampler here has this option ({kinds}): set frontier.{name}=null")
    for run in runs[1:]:
        if run.tokenizer.fingerprint() != runs[0].tokenizer.fingerprint():
            raise ValueError(
                f"frontier.checkpoints: {run.label} and {runs[0].label} have different tokenizers: entropies do not compare"
            )
        if run.canvas.tokens.shape != runs[0].canvas.tokens.shape:
            raise ValueError(f"frontier.checkpoints: {run.label} and {runs[0].label} differ in length: set sampling.length")
    return runs


def target_entropies(config: DictConfig) -> list[float]:
    """frontier.entropies in nats, a number or a list; none where it is null or empty."""
    given = config.frontier.entropies
    return [] if given is None or given == [] else axis_values(config, "entropies")


def axis_values(config: DictConfig, name: str) -> list[float]:
    """The values of frontier.<name>, a number or a list."""
    given = config.frontier[name]
    values = list(given) if isinstance(given, ListConfig) else [given]
    numeric = [isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values]
    if not values or not all(numeric) or len(set(values)) < len(values):
        raise ValueError(f"frontier.{name} must be different numbers, not {given}")
    return [float(value) for value in values]


def has_option(algorithm: Algorithm, options: Mapping[str, Any]) -> bool:
    """Whether the algorithm's sampler takes these options."""
    try:
        sampler_for(algorithm, options)
    except ValueError:
        return False
    return True


def log_ppl(measured: Measures, rows: list[list[int]], texts: list[str], settings: Mapping[str, Any]) -> Estimate:
    """Nats per token of samples under the judge of the sweep."""
    found = measured.log_ppl(rows, texts)
    if found is None:
        raise ValueError(f"mode=frontier: {dict(settings)}: every sample is too short for the scorer to have anything to score")
    return found


def real_level(measured: Measures, real: RealText | str, tokenizer: Tokenizer) -> dict[str, Any] | None:
    """Diversity and log perplexity of real text under the same judge; None without real text."""
    if isinstance(real, str):
        return None
    if measured.judges:
        judged = measured.log_ppl(real.rows, [tokenizer.decode(row) for row in real.rows])
    else:
        assert measured.ngrams is not None
        judged = measured.ngrams.real(real.chosen)
    diversity = token_diversity(real.rows)
    return {
        "count": len(real.chosen),
        "source": real.source,
        "entropy_nats": plain(diversity.entropy_nats),
        "tokens_used": diversity.tokens_used,
        "token_js_bits": None if measured.frequencies is None else measured.frequencies.js_bits(real.rows),
        "log_ppl": plain(judged),
    }


def own_points(run: Run, points: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Those of one checkpoint."""
    return [
        Point(
            point["settings"],
            point["entropy_nats"]["mean"],
            point["log_ppl"]["mean"],
            point["entropy_nats"]["standard_error"],
            point["log_ppl"]["standard_error"],
        )
        for point in points
        if point["settings"]["run"] == run.label
    ]


def matched(runs: Sequence[Run], points: Sequence[Mapping[str, Any]], targets: Mapping[str, float]) -> list[dict[str, Any]]:
    """Rows of `frontier_table`, each run interpolated along its own setting."""
    return [row for run in runs for row in frontier_table(own_points(run, points), targets, run.along)]


def drawn(runs: Sequence[Run], points: Sequence[Mapping[str, Any]], real: Mapping[str, Any] | None, scorer: str) -> bytes:
    """frontier.png."""
    found = [curve for run in runs for curve in curves(own_points(run, points), run.along)]
    levels = [] if real is None else [(real["entropy_nats"]["mean"], real["log_ppl"]["mean"])]
    with styled():
        return png(frontier_figure(found, levels, scorer, run_colours([run.label for run in runs])))


def checkpoint_entry(run: Run) -> dict[str, Any]:
    file = run.file
    kind = type(run.algorithm).__name__
    return {"path": str(file.path), "sha256": file.sha256, "step": file.step, "algorithm": kind, "options": run.options}
