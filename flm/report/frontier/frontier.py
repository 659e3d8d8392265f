"""mode=frontier: one or several checkpoints at many settings of the sampler, compared at equal entropy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from omegaconf import DictConfig
from rich.console import Console

from flm.atomic import write_bytes, write_text
from flm.checkpoints.hub import ModelName
from flm.data.tokenizers import Tokenizer
from flm.language_model import LanguageModel
from flm.measures.diversity import self_bleu_4, token_diversity
from flm.ranges import DIFFERENT, NonNegative, Positive, Share, StepCounts
from flm.report.figures.plotting import png, run_colours, styled
from flm.report.frontier.curves import Point, curves, frontier_table
from flm.report.frontier.figure import frontier_figure, scorer_name
from flm.report.frontier.tables import console_table, markdown
from flm.samplers.canvas import Canvas
from flm.samplers.options import sampler_for
from flm.tasks.evaluation import EvalOptions, load_model
from flm.tasks.held_out import HeldOut, RealText
from flm.tasks.machine import Machine
from flm.tasks.processes import Team, team_of
from flm.tasks.run import Run
from flm.tasks.samples import Generation, Request, generate, possible_steps, step_counts, warm_up, write_texts
from flm.tasks.scoring import Measures, judges_of, measures, plain

AXES = ("temperature", "churn", "gamma")  # what may be swept beside steps, the one to interpolate along first


@dataclass(frozen=True)
class FrontierOptions:
    """The `frontier` config; keys explained there."""

    checkpoints: Mapping[str, ModelName] | None = None
    steps: StepCounts = (8, 32)
    temperature: Positive | Annotated[Sequence[Positive], MinLen(1), DIFFERENT] | None = 1.0
    churn: NonNegative | Annotated[Sequence[NonNegative], MinLen(1), DIFFERENT] | None = None
    gamma: Share | Annotated[Sequence[Share], MinLen(1), DIFFERENT] | None = None
    entropies: float | Annotated[Sequence[float], DIFFERENT] | None = ()


@dataclass(frozen=True)
class Swept:
    """A model in the sweep.

    Attributes:
        steps: numbers of steps to sample with.
        sweeps: values by name, of the swept options that its sampler has.
    """

    label: str
    lm: LanguageModel
    canvas: Canvas
    steps: list[int]
    sweeps: dict[str, list[float]]

    @property
    def along(self) -> str:
        """The setting whose neighbours are interpolated between."""
        return next((name for name in self.sweeps if len(self.sweeps[name]) > 1), next(iter(self.sweeps), "steps"))

    def settings(self) -> Iterator[dict[str, Any]]:
        for steps, *values in product(self.steps, *self.sweeps.values()):
            yield {"run": self.label, "steps": steps, **dict(zip(self.sweeps, values, strict=True))}

    def generate(self, settings: Mapping[str, Any], request: Request, team: Team) -> Generation:
        options = {name: settings[name] for name in self.sweeps}
        return generate(self.lm, self.canvas, settings["steps"], request.batches, request.seed, team, **options)


def frontier(config: DictConfig) -> dict[str, Any]:
    """Samples every setting of every model; writes run_dir/frontier.json, .md and .png, and prints the table.

    Log perplexity is that of the first scorer under the first protocol; without one, the cross-entropy under 3-grams of the
    validation text, and called so. Real text is that of the first model's data. Samples of point i are in
    run_dir/frontier-samples/<i>.jsonl. Of several processes each generates its share; the first one does all else, and the
    others return nothing.
    """
    run = Run(config)
    evaluation, sweep = run.options(EvalOptions, "eval"), run.options(FrontierOptions, "frontier")
    request = Request.of(run["sampling"], run["loader"]["eval_batch_size"], run["seed"])
    axes = {name: numbers(values) for name in AXES if (values := getattr(sweep, name)) is not None}
    machine = Machine.of(run["trainer"], run["model"])
    held_out = HeldOut.of(evaluation, run["data"], run["loader"], run["seed"])
    with team_of(machine.device) as team:
        console = Console(quiet=not team.is_first)
        models = loaded(evaluation, sweep.checkpoints, machine, request, step_counts(sweep.steps), axes, console)
        if not team.is_first:
            for model in models:
                warm_up(model.lm, model.canvas)
                for settings in model.settings():
                    model.generate(settings, request, team)
            return {}
        first, length = models[0].lm, models[0].canvas.tokens.shape[1]
        judges = judges_of(evaluation, first)
        real = held_out.real_text(first, length, request.count)
        measured = measures(evaluation, judges, first, length, real)
        check_scorer(measured, real)
        points: list[dict[str, Any]] = []
        for model in models:
            warm_up(model.lm, model.canvas)
            for settings in model.settings():
                name = f"frontier-samples/{len(points):03d}.jsonl"
                found = model.generate(settings, request, team)
                points.append({"settings": settings, "file": name} | point_of(found, run.folder / name, measured, model.lm))
    level = real_level(measured, real, first.tokenizer)
    targets = {f"{entropy:g}": entropy for entropy in numbers(sweep.entropies)}
    if level is not None:
        targets = {"data": level["entropy_nats"]["mean"], **targets}
    content = run.about("frontier", first, measured.first_scorer)
    content |= {
        "label": evaluation.label or ", ".join(model.label for model in models),
        "algorithm": ", ".join(dict.fromkeys(type(model.lm.algorithm).__name__ for model in models)),
        "scorer": measured.first_scorer or (measured.ngrams and measured.ngrams.describe()),
        "checkpoint": first.source.record() if len(models) == 1 else None,
        "checkpoints": {model.label: checkpoint_entry(model) for model in models},
        "points": points,
        "real": level,
        "matched": matched(models, points, targets),
    }
    if isinstance(real, str):
        content["real_unavailable"] = real
    run.write_json("frontier.json", content)
    write_text(run.folder / "frontier.md", markdown(content, request.count, request.seed))
    write_bytes(run.folder / "frontier.png", drawn(models, points, level, scorer_name(content["scorer"])))
    console.print(console_table(content))
    held_out.say_what_is_missing(real, request.count, console)
    console.print(f"frontier: {run.folder}")
    return content


def loaded(
    evaluation: EvalOptions,
    named: Mapping[str, str] | None,
    machine: Machine,
    request: Request,
    steps: list[int],
    axes: Mapping[str, list[float]],
    console: Console,
) -> list[Swept]:
    """All models, and every option they will be sampled with tried on their samplers.

    Args:
        named: by label; None: the one of `evaluation`.
        steps: wanted numbers of steps.
        axes: wanted values of the options to sweep, by name.

    Raises:
        ValueError: a swept option that no sampler has, or models whose entropies are not of the same thing.
    """
    models: list[Swept] = []
    for label, path in (named or {None: evaluation.checkpoint_path}).items():
        lm = load_model(replace(evaluation, checkpoint_path=path), machine)
        request.set_options(lm)
        sweeps = {name: values for name, values in axes.items() if refusal(lm, name, values) is None}
        for values in product(*sweeps.values()):
            sampler_for(lm.algorithm, lm.options | dict(zip(sweeps, values, strict=True)), "frontier")
        canvas = request.canvas(lm)
        label = str(label) if label is not None else evaluation.label or lm.source.label
        models.append(Swept(label, lm, canvas, possible_steps(steps, lm, canvas, console), sweeps))
    for name, values in axes.items():
        if not any(name in model.sweeps for model in models):
            reason = refusal(models[0].lm, name, values)
            raise ValueError(f"frontier.{name}: no sampler here takes it ({reason}): set frontier.{name}=null")
    first = models[0]
    for model in models[1:]:
        if model.lm.tokenizer.fingerprint() != first.lm.tokenizer.fingerprint():
            raise ValueError(
                f"frontier.checkpoints: {model.label} and {first.label} have different tokenizers: entropies do not compare"
            )
        if model.canvas.tokens.shape != first.canvas.tokens.shape:
            raise ValueError(f"frontier.checkpoints: {model.label} and {first.label} differ in length: set sampling.length")
    return models


def numbers(given: float | Sequence[float] | None) -> list[float]:
    """A number or several, as a list; None: none."""
    return [] if given is None else [float(value) for value in ([given] if isinstance(given, int | float) else given)]


def refusal(lm: LanguageModel, option: str, values: Sequence[float]) -> str | None:
    """Why the model's sampler takes none of the values of an option; None where it takes one."""
    reason = None
    for value in values:
        try:
            sampler_for(lm.algorithm, lm.options | {option: value}, "sampling")
        except ValueError as error:
            reason = str(error)
        else:
            return None
    return reason


def check_scorer(measured: Measures, real: RealText | str) -> None:
    """Raises ValueError where nobody scores samples."""
    if not measured.judges and measured.ngrams is None:
        reason = real if isinstance(real, str) else "one block of it is too little"
        raise ValueError(
            "mode=frontier needs a scorer: eval.gen_ppl_eval_model_name_or_path, eval.scorer=ar, or real text for the 3-gram "
            f"judge ({reason})"
        )


def point_of(found: Generation, path: Path, measured: Measures, lm: LanguageModel) -> dict[str, Any]:
    """Samples written to a file, and what the sweep measures on them."""
    rows = found.tokens.tolist()
    texts = write_texts(path, rows, lm.tokenizer)
    timing, diversity, judged = found.timing(), token_diversity(rows), measured.log_ppl(rows, texts)
    if judged is None:
        raise ValueError(f"mode=frontier: {path}: every sample is too short for the scorer to have anything to score")
    return {
        "count": len(rows),
        "entropy_nats": plain(diversity.entropy_nats),
        "log_ppl": plain(judged),
        "tokens_used": diversity.tokens_used,
        "token_js_bits": None if measured.frequencies is None else measured.frequencies.js_bits(rows),
        "distinct_2": diversity.distinct_2,
        "self_bleu_4": plain(self_bleu_4(texts)),
        "ms_per_sample": timing["ms_per_sample"],
        "network_evaluations": timing["network_evaluations"],
    }


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


def own_points(run: Swept, points: Sequence[Mapping[str, Any]]) -> list[Point]:
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


def matched(runs: Sequence[Swept], points: Sequence[Mapping[str, Any]], targets: Mapping[str, float]) -> list[dict[str, Any]]:
    """Rows of `frontier_table`, each run interpolated along its own setting."""
    return [row for run in runs for row in frontier_table(own_points(run, points), targets, run.along)]


def drawn(runs: Sequence[Swept], points: Sequence[Mapping[str, Any]], real: Mapping[str, Any] | None, scorer: str) -> bytes:
    """frontier.png."""
    found = [curve for run in runs for curve in curves(own_points(run, points), run.along)]
    levels = [] if real is None else [(real["entropy_nats"]["mean"], real["log_ppl"]["mean"])]
    with styled():
        return png(frontier_figure(found, levels, scorer, run_colours([run.label for run in runs])))


def checkpoint_entry(model: Swept) -> dict[str, Any]:
    return model.lm.source.record() | {"algorithm": type(model.lm.algorithm).__name__, "options": model.lm.options}
