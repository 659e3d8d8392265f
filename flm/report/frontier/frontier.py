"""mode=frontier: samples checkpoints at many settings of their samplers, and compares them at equal entropy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import MinLen
from omegaconf import DictConfig

from flm.atomic import write_bytes, write_text
from flm.checkpoints.hub import ModelName
from flm.data.tokenizers import Tokenizer
from flm.measures.diversity import repetition, self_bleu_4, token_diversity
from flm.measures.estimate import Estimate
from flm.ranges import DIFFERENT, Count, Positive, StepCounts
from flm.report.figures.plotting import png, run_colours, styled
from flm.report.frontier.curves import Point, curves, frontier_table
from flm.report.frontier.figure import frontier_figure, scorer_name
from flm.report.frontier.nulls import nulls
from flm.report.frontier.rankings import Ranking, changes, rankings
from flm.report.frontier.sweep import Swept, axes_of, key_of, loaded
from flm.report.frontier.tables import console_table, markdown
from flm.tasks.evaluation import EvalOptions
from flm.tasks.held_out import HeldOut, RealText
from flm.tasks.machine import Machine
from flm.tasks.processes import team_of, terminal
from flm.tasks.run import Run
from flm.tasks.samples import Generation, Request, step_counts, warm_up, write_texts
from flm.tasks.scoring import Measures, judges_of, measures, plain

Option = bool | int | float | str  # a value of a sampler's option


@dataclass(frozen=True)
class FrontierOptions:
    """The `frontier` config; keys explained there."""

    checkpoints: Mapping[str, ModelName] | None = None
    steps: StepCounts = (8, 32)
    temperature: Positive | Annotated[Sequence[Positive], MinLen(1), DIFFERENT] | None = 1.0
    sweep: Mapping[str, Option | Sequence[Option | None] | None] | None = None
    seeds: Count = 1
    entropies: float | Annotated[Sequence[float], DIFFERENT] | None = ()


def frontier(config: DictConfig) -> dict[str, Any]:
    """Samples every setting of every model; writes run_dir/frontier.json, .md and .png, and prints the table.

    Log perplexity is that of the first scorer under its first protocol. Without a scorer it is the cross-entropy under 3-grams
    of the validation text, and named so. Real text is that of the first model's data. Samples of point i are in
    run_dir/frontier-samples/<i>.jsonl. Each of several processes generates its share; the first one does all else, and the
    others return an empty dict.
    """
    run = Run(config)
    evaluation, sweep = run.options(EvalOptions, "eval"), run.options(FrontierOptions, "frontier")
    request = Request.of(run["sampling"], run["loader"]["eval_batch_size"], run["seed"])
    axes = axes_of(sweep.temperature, sweep.sweep)
    keys = {name: key_of(name, sweep.sweep) for name in axes}
    seeds = range(request.seed, request.seed + sweep.seeds)
    machine = Machine.of(run["trainer"], run["model"])
    held_out = HeldOut.of(evaluation, run["data"], run["loader"], run["seed"])
    with team_of(machine.device) as team:
        console = terminal(quiet=not team.is_first)
        models = loaded(evaluation, sweep.checkpoints, machine, request, step_counts(sweep.steps), axes, keys, console)
        if not team.is_first:
            for model in models:
                warm_up(model.lm, model.canvas)
                for setting in model.settings():
                    for seed in seeds:
                        model.generate(setting, request, seed, team)
            return {}
        first, length = models[0].lm, models[0].canvas.tokens.shape[1]
        judges = judges_of(evaluation, first)
        real = held_out.real_text(first, length, request.count)
        measured = measures(evaluation, judges, first, length, real)
        check_scorer(measured, real)
        points: list[dict[str, Any]] = []
        for model in models:
            warm_up(model.lm, model.canvas)
            for setting in model.settings():
                name = f"frontier-samples/{len(points):03d}.jsonl"
                found = [model.generate(setting, request, seed, team) for seed in seeds]
                rows = [row for one in found for row in one.tokens.tolist()]
                texts = write_texts(run.folder / name, rows, model.lm.tokenizer)
                about = {"settings": setting.settings, "file": name} | measured_on(rows, texts, measured, len(seeds), name)
                points.append(about | cost(found))
    level = real_level(measured, real, first.tokenizer)
    controls = [] if isinstance(real, str) else controls_of(real, request, length, measured, first.tokenizer)
    for point in [*points, *controls]:
        point["repeats_more"] = None if level is None else repeats_more(point, level)
    targets = {f"{entropy:g}": entropy for entropy in numbers(sweep.entropies)}
    if level is not None:
        targets = {"data": level["entropy_nats"]["mean"], **targets}
    rows = matched(models, points, targets)
    ranked = [] if level is None else ranking_of(models, points, rows)
    content = run.about("frontier", first, measured.first_scorer)
    content |= {
        "label": evaluation.label or ", ".join(model.label for model in models),
        "algorithm": ", ".join(dict.fromkeys(type(model.lm.algorithm).__name__ for model in models)),
        "scorer": measured.first_scorer or (measured.ngrams and measured.ngrams.describe()),
        "checkpoint": first.source.record() if len(models) == 1 else None,
        "checkpoints": {model.label: checkpoint_entry(model) for model in models},
        "points": points,
        "real": level,
        "matched": rows,
        "seeds": list(seeds),
        "nulls": controls,
        "nulls_matched": frontier_table(as_points(controls), targets, "size") if targets and controls else [],
        "rankings": [{"by": one.by, "steps": one.steps, "order": one.order} for one in ranked],
        "ranking_changes": changes(ranked),
    }
    if isinstance(real, str):
        content["real_unavailable"] = real
    run.write_json("frontier.json", content)
    write_text(run.folder / "frontier.md", markdown(content, request.count * sweep.seeds, request.seed))
    write_bytes(run.folder / "frontier.png", drawn(models, points, controls, level, scorer_name(content["scorer"])))
    console.print(console_table(content))
    held_out.say_what_is_missing(real, request.count, console)
    console.print(f"frontier: {run.folder}")
    return content


def numbers(given: float | Sequence[float] | None) -> list[float]:
    """A number or several, as a list; None: none."""
    return [] if given is None else [float(value) for value in ([given] if isinstance(given, int | float) else given)]


def check_scorer(measured: Measures, real: RealText | str) -> None:
    """Raises ValueError if there is neither a scorer nor real text for the 3-gram judge."""
    if not measured.judges and measured.ngrams is None:
        reason = real if isinstance(real, str) else "one block of it is too little"
        raise ValueError(
            "mode=frontier needs a scorer: eval.gen_ppl_eval_model_name_or_path, eval.scorer=ar, or real text for the 3-gram "
            f"judge ({reason})"
        )


def measured_on(
    rows: list[list[int]], texts: list[str], measured: Measures, seeds: int, name: str, with_bleu: bool = True
) -> dict[str, Any]:
    """Measures of samples, as in frontier.json. With several seeds, standard errors are over seeds.

    Measures that depend on the number of samples are taken for each seed, as many samples as of real text, and averaged.

    Args:
        rows: token ids of the samples of the first seed, then of as many of the second, ....
        texts: the same decoded.
        seeds: number of seeds.
        name: of the samples, for errors.
    """
    size = len(rows) // seeds
    parts = [slice(start, start + size) for start in range(0, len(rows), size)]
    judged = [measured.log_ppl(rows[part], texts[part]) for part in parts]
    if None in judged:
        raise ValueError(f"mode=frontier: {name}: every sample is too short for the scorer to have anything to score")
    found = [token_diversity(rows[part]) for part in parts]

    def over(values: Sequence[Sequence[float]]) -> dict[str, Any] | None:
        """The mean of one value per sample. With several seeds, its error is over the seeds' means."""
        return plain(Estimate.of(values[0] if seeds == 1 else [sum(one) / len(one) for one in values]))

    bleu = [self_bleu_4(texts[part]) if with_bleu else None for part in parts]
    return {
        "count": len(rows),
        "entropy_nats": over([one.entropy_per_sample for one in found]),
        "log_ppl": plain(_mean_estimate(judged)),
        "tokens_used": _mean([one.tokens_used for one in found]),
        "token_js_bits": _mean([measured.frequencies and measured.frequencies.js_bits(rows[part]) for part in parts]),
        "distinct_2": _mean([one.distinct_2 for one in found]),
        "rep_2": over([[repetition(row, 2) for row in rows[part]] for part in parts]),
        "rep_4": over([[repetition(row, 4) for row in rows[part]] for part in parts]),
        "self_bleu_4": plain(_mean_estimate(bleu)),
        "mauve": _mean([measured.mauve and measured.mauve.score(texts[part]) for part in parts]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean over seeds; None if a seed has no value."""
    there = [value for value in values if value is not None]
    if len(there) < len(values):
        return None
    return there[0] if len(there) == 1 else sum(there) / len(there)


def _mean_estimate(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """The mean over seeds with its error; of one seed, its own estimate; None if a seed has none."""
    there = [one for one in estimates if one is not None]
    if len(there) < len(estimates):
        return None
    return there[0] if len(there) == 1 else Estimate.of([one.mean for one in there])


def cost(found: Sequence[Generation]) -> dict[str, Any]:
    """Means over the seeds of a setting: milliseconds per sample, and network calls if they were counted."""
    timings = [one.timing() for one in found]
    calls = [one.network_evaluations for one in found if one.network_evaluations is not None]
    return {
        "ms_per_sample": sum(timing["ms_per_sample"] for timing in timings) / len(timings),
        "network_evaluations": sum(calls) / len(calls) if calls else None,
    }


def controls_of(
    real: RealText, request: Request, length: int, measured: Measures, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """Points of the texts that no model wrote."""
    found = []
    for null in nulls(real, request.count, length, request.seed):
        texts = [tokenizer.decode(row) for row in null.rows]
        about = measured_on(null.rows, texts, measured, 1, null.name, with_bleu=False)
        found.append({"settings": {"run": null.name, "size": null.size}} | about)
    return found


def repeats_more(point: Mapping[str, Any], level: Mapping[str, Any]) -> bool:
    """Whether samples repeat 2-grams or 4-grams more than real text does, with a difference above two standard errors."""
    for name in ("rep_2", "rep_4"):
        errors = [one["standard_error"] or 0.0 for one in (point[name], level[name])]
        if point[name]["mean"] - level[name]["mean"] > 2 * sum(error**2 for error in errors) ** 0.5:
            return True
    return False


def ranking_of(
    models: Sequence[Swept], points: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> list[Ranking]:
    plain_options = {name: value for model in models for name, value in model.defaults().items()}
    fixed = [model.label for model in models if model.lm.has_fixed_steps]
    return rankings(points, rows, "data", plain_options, fixed)


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
        "rep_2": plain(Estimate.of([repetition(row, 2) for row in real.rows])),
        "rep_4": plain(diversity.rep_4),
        "log_ppl": plain(judged),
    }


def as_points(points: Sequence[Mapping[str, Any]]) -> list[Point]:
    return [
        Point(
            point["settings"],
            point["entropy_nats"]["mean"],
            point["log_ppl"]["mean"],
            point["entropy_nats"]["standard_error"],
            point["log_ppl"]["standard_error"],
            bool(point["repeats_more"]),
        )
        for point in points
    ]


def own_points(run: Swept, points: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The points of one checkpoint."""
    return as_points([point for point in points if point["settings"]["run"] == run.label])


def matched(runs: Sequence[Swept], points: Sequence[Mapping[str, Any]], targets: Mapping[str, float]) -> list[dict[str, Any]]:
    """Rows of `frontier_table`, each run interpolated along its own setting."""
    return [row for run in runs for row in frontier_table(own_points(run, points), targets, run.along)]


def drawn(
    runs: Sequence[Swept],
    points: Sequence[Mapping[str, Any]],
    controls: Sequence[Mapping[str, Any]],
    real: Mapping[str, Any] | None,
    scorer: str,
) -> bytes:
    """The bytes of frontier.png."""
    found = [curve for run in runs for curve in curves(own_points(run, points), run.along)]
    levels = [] if real is None else [(real["entropy_nats"]["mean"], real["log_ppl"]["mean"])]
    with styled():
        background = curves(as_points(controls), "size")
        return png(frontier_figure(found, levels, scorer, run_colours([run.label for run in runs]), background))


def checkpoint_entry(model: Swept) -> dict[str, Any]:
    return model.lm.source.record() | {"algorithm": type(model.lm.algorithm).__name__, "options": model.lm.options}
