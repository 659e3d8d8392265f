"""mode=sample_eval: samples from a checkpoint at one or several numbers of steps, measured beside real text."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flm.language_model import LanguageModel
from flm.measures.film import FilmStrip
from flm.tasks.evaluation import EvalOptions, load_model
from flm.tasks.held_out import HeldOut, RealText
from flm.tasks.machine import Machine
from flm.tasks.processes import team_of, terminal
from flm.tasks.run import Run
from flm.tasks.samples import Request, generate, possible_steps, warm_up, write_texts
from flm.tasks.scoring import judges_of, measures


def sample_eval(config: DictConfig) -> dict[str, Any]:
    """Samples from eval.checkpoint_path, measures the samples and as much real text, and prints some samples and a table.

    Writes run_dir/samples-<steps>.jsonl, real.jsonl, results.json, and with sampling.film film-<steps>.json. Of several
    processes each generates its share; the first does everything else, and the others return {}.
    """
    run = Run(config)
    evaluation = run.options(EvalOptions, "eval")
    request = Request.of(run["sampling"], run["loader"]["eval_batch_size"], run["seed"])
    machine = Machine.of(run["trainer"], run["model"])
    held_out = HeldOut.of(evaluation, run["data"], run["loader"], run["seed"])
    with team_of(machine.device) as team:
        lm, console = load_model(evaluation, machine), terminal(quiet=not team.is_first)
        request.set_options(lm)
        canvas = request.canvas(lm)
        length, all_steps = canvas.tokens.shape[1], possible_steps(request.steps, lm, canvas, console)
        if not team.is_first:
            warm_up(lm, canvas)
            for steps in all_steps:
                generate(lm, canvas, steps, request.batches, request.seed, team)
            return {}
        judges = judges_of(evaluation, lm)  # before sampling, so that a missing judge is an early error
        real = held_out.real_text(lm, length, request.count)
        measured = measures(evaluation, judges, lm, length, real)
        warm_up(lm, canvas)
        results = run.about("sample_eval", lm, measured.first_scorer) | {"generated": {}, "real": None}
        for steps in all_steps:
            film = FilmStrip() if request.canvas_options.film else None
            found = generate(lm, canvas, steps, request.batches, request.seed, team, film)
            rows = found.tokens.tolist()
            texts = write_texts(run.folder / f"samples-{steps}.jsonl", rows, lm.tokenizer)
            if film is not None:
                write_film(run, lm, steps, film, measured.first_scorer)
            results["generated"][str(steps)] = {
                "steps": steps,
                "options": lm.options,
                "count": len(rows),
                "file": f"samples-{steps}.jsonl",
                **found.timing(),
                "metrics": measured.of_generated(rows, texts),
            }
            show(texts[:3], steps, console)
    if isinstance(real, RealText):
        texts = write_texts(run.folder / "real.jsonl", real.rows, lm.tokenizer)
        metrics = measured.of_real(real, texts)
        results["real"] = {"count": len(texts), "file": "real.jsonl", "source": real.source, "metrics": metrics}
    else:
        results["real_unavailable"] = real
    results["ngram_judge"] = None if measured.ngrams is None else measured.ngrams.describe()
    run.write_json("results.json", results)
    console.print(table_of(results))
    held_out.say_what_is_missing(real, request.count, console)
    console.print(f"samples and results: {run.folder}")
    return results


def write_film(run: Run, lm: LanguageModel, steps: int, film: FilmStrip, scorer: dict[str, Any] | None) -> None:
    frames = [frame.to_dict(lm.tokenizer) for frame in film.frames]
    content = {"steps": steps, "options": lm.options, "frames": frames}
    run.write_json(f"film-{steps}.json", run.about("film", lm, scorer) | content)


def show(texts: Sequence[str], steps: int, console: Console) -> None:
    console.rule(f"{steps} step{'s' * (steps > 1)}")
    for text in texts:
        console.print(escape(text), soft_wrap=True)
        console.print()


def table_of(results: dict[str, Any]) -> Table:
    """The main numbers, with a row for each number of steps and one for real text."""
    table = Table(title="nats, JS in bits; perplexity: " + (results["scorer"] or {"name": "no scorer"})["name"])
    for heading in ("steps", "entropy", "tokens used", "token JS", "distinct-2", "3-gram CE", "gain", "gen ppl", "ms / sample"):
        table.add_column(heading, justify="right")
    rows = [*results["generated"].items(), *([("real", results["real"])] if results["real"] is not None else [])]
    for name, entry in rows:
        found = entry["metrics"]
        perplexity = found["gen_ppl"][0]["ppl"] if found["gen_ppl"] else None
        order = mean(found["ngram_ce_nats"]), found["ngram_gain_nats"]
        numbers = found["token_js_bits"], found["distinct_2"], *order, perplexity
        cells = [f"{mean(found['entropy_nats']):.3f}", str(found["tokens_used"])]
        cells += ["" if number is None else f"{number:.3f}" for number in numbers]
        table.add_row(name, *cells, f"{entry['ms_per_sample']:.1f}" if "ms_per_sample" in entry else "")
    return table


def mean(estimate: dict[str, Any] | None) -> float | None:
    return None if estimate is None else estimate["mean"]
