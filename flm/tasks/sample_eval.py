"""mode=sample_eval: texts from a checkpoint, at one or several numbers of steps, and what they are like beside real text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flm.atomic import write_text
from flm.data.tokenizers import Tokenizer
from flm.measures.film import FilmStrip
from flm.tasks.assemble import load_for_evaluation, run_dir
from flm.tasks.generation import (
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
from flm.tasks.scoring import head, judges_of, measures


def sample_eval(config: DictConfig) -> dict[str, Any]:
    """Samples from eval.checkpoint_path, measures the samples and as much real text, prints some and a table.

    Writes run_dir/samples-<steps>.jsonl, real.jsonl, results.json, and with sampling.film film-<steps>.json. Of several
    processes each generates its share; the first one does all else, and the others return nothing.
    """
    with team_of(config) as team:
        return _sample_eval(config, team)


def _sample_eval(config: DictConfig, team: Team) -> dict[str, Any]:
    wanted_steps, count = step_counts(config.sampling.steps), number_of_samples(config)
    lm = load_for_evaluation(config)
    algorithm, file, tokenizer = lm.algorithm, lm.source, lm.tokenizer
    canvas = canvas_of(config, algorithm, tokenizer)
    options = sampler_options(config, file, algorithm)
    console = Console(quiet=not team.is_first)
    all_steps = possible_steps(wanted_steps, algorithm, canvas, options, console)
    if not team.is_first:
        warm_up(algorithm, canvas, config, options)
        for steps in all_steps:
            generate(algorithm, canvas, steps, config, options, team)
        return {}
    length = canvas.tokens.shape[1]
    judges = judges_of(config, tokenizer)  # what is missing is missed before anything is sampled
    real = real_text(config, file, tokenizer, length, count)
    measured = measures(config, judges, tokenizer, length, real)
    folder = run_dir(config)
    common = provenance(config, file)
    generated: dict[str, Any] = {}
    warm_up(algorithm, canvas, config, options)
    for steps in all_steps:
        film = FilmStrip() if config.sampling.film else None
        found = generate(algorithm, canvas, steps, config, options, team, film)
        rows = found.tokens.tolist()
        path = folder / f"samples-{steps}.jsonl"
        texts = write_texts(path, rows, tokenizer)
        if film is not None:
            frames = [frame.to_dict(tokenizer) for frame in film.frames]
            content = {"steps": steps, "options": options, "frames": frames}
            about = head("film", config, algorithm, file, measured.first_scorer)
            write_json(folder / f"film-{steps}.json", common | about | content)
        generated[str(steps)] = {
            "steps": steps,
            "options": options,
            "count": len(rows),
            "file": path.name,
            **found.timing(),
            "metrics": measured.of_generated(rows, texts),
        }
        console.rule(f"{steps} step{'s' * (steps > 1)}")
        for text in texts[:3]:
            console.print(escape(text), soft_wrap=True)
            console.print()
    results = head("sample_eval", config, algorithm, file, measured.first_scorer) | {"generated": generated, "real": None}
    if isinstance(real, RealText):
        texts = write_texts(folder / "real.jsonl", real.rows, tokenizer)
        results["real"] = {
            "count": len(texts),
            "file": "real.jsonl",
            "source": real.source,
            "metrics": measured.of_real(real, texts),
        }
    else:
        results["real_unavailable"] = real
    results["ngram_judge"] = None if measured.ngrams is None else measured.ngrams.describe()
    write_json(folder / "results.json", common | results)
    console.print(table_of(results))
    say_what_is_missing(real, count, config, console)
    console.print(f"samples and results: {folder}")
    return results


def write_texts(path: Path, rows: Sequence[Sequence[int]], tokenizer: Tokenizer) -> list[str]:
    """One line of JSON a text, with its tokens; the texts."""
    texts = [tokenizer.decode(row) for row in rows]
    lines = ({"text": text, "tokens": list(row)} for text, row in zip(texts, rows, strict=True))
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return texts


def table_of(results: dict[str, Any]) -> Table:
    """The chief numbers, a row for each number of steps and one for real text."""
    table = Table(title="nats, JS in bits; perplexity: " + (results["scorer"] or {"name": "no scorer"})["name"])
    for heading in ("steps", "entropy", "tokens used", "token JS", "distinct-2", "3-gram CE", "gen ppl", "ms / sample"):
        table.add_column(heading, justify="right")
    rows = [(name, entry) for name, entry in results["generated"].items()]
    rows += [("real", results["real"])] if results["real"] is not None else []
    for name, entry in rows:
        found = entry["metrics"]
        perplexity = found["gen_ppl"][0]["ppl"] if found["gen_ppl"] else None
        numbers = (found["token_js_bits"], found["distinct_2"], mean(found["ngram_ce_nats"]), perplexity)
        cells = [f"{mean(found['entropy_nats']):.3f}", str(found["tokens_used"])]
        cells += ["" if number is None else f"{number:.3f}" for number in numbers]
        table.add_row(name, *cells, f"{entry['ms_per_sample']:.1f}" if "ms_per_sample" in entry else "")
    return table


def mean(estimate: dict[str, Any] | None) -> float | None:
    return None if estimate is None else estimate["mean"]


def say_what_is_missing(real: RealText | str, count: int, config: DictConfig, console: Console) -> None:
    """One line where real text is missing, or less than samples, although it is wanted."""
    if isinstance(real, str) and config.eval.real_data is not None:
        console.print(f"warning: no real text to compare with: {escape(real)}", soft_wrap=True)
    elif isinstance(real, RealText) and len(real.chosen) < count:
        console.print(
            f"warning: only {len(real.chosen)} real texts for {count} samples: distinct-n and self-BLEU depend on the number "
            "and do not compare",
            soft_wrap=True,
        )
