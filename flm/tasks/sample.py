"""mode=sample_eval: texts from a checkpoint, at one or several numbers of steps, and what they are like beside real text."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from flm.algos.algorithm import Algorithm
from flm.checkpoints.load import CheckpointFile
from flm.data.tokenizers import Tokenizer
from flm.draws import mix_seed
from flm.evaluation.film import FilmStrip
from flm.samplers.canvas import Canvas
from flm.samplers.template import CANVAS_KEYS, pieces_of
from flm.tasks.assemble import inference_precision, load_for_evaluation, run_dir
from flm.tasks.real_text import RealText, real_text
from flm.tasks.results import provenance, write_json, write_text
from flm.tasks.scoring import head, judges_of, measures


@dataclass(frozen=True)
class Generation:
    """Samples of one setting.

    Attributes:
        tokens: (N, L) on the CPU.
        batch_seconds: of each batch, the tokens' way back to the CPU included.
        network_evaluations: calls of the algorithm's `backbone` for one batch; None where it has none, or it is not called
            as a module.
    """

    tokens: Tensor
    batch_seconds: list[float]
    network_evaluations: int | None

    def timing(self) -> dict[str, float | int | None]:
        """For result files. Rates leave out the first batch, which may be filmed, unless it is the only one."""
        timed = self.batch_seconds[1:] or self.batch_seconds
        per_sample = sum(timed) / (len(timed) * len(self.tokens) / len(self.batch_seconds))
        return {
            "seconds": sum(self.batch_seconds),
            "ms_per_sample": 1000 * per_sample,
            "tokens_per_second": self.tokens.shape[1] / per_sample,
            "network_evaluations": self.network_evaluations,
        }


def sample_eval(config: DictConfig) -> dict[str, Any]:
    """Samples from eval.checkpoint_path, measures the samples and as much real text, prints some and a table.

    Writes run_dir/samples-<steps>.jsonl, real.jsonl, results.json, and with sampling.film film-<steps>.json.
    """
    wanted_steps, count = step_counts(config.sampling.steps), number_of_samples(config)
    algorithm, file, tokenizer = load_for_evaluation(config)
    canvas = canvas_of(config, algorithm, tokenizer)
    options = sampler_options(config, file, algorithm)
    length = canvas.tokens.shape[1]
    judges = judges_of(config, tokenizer)  # what is missing is missed before anything is sampled
    real = real_text(config, file, tokenizer, length, count)
    measured = measures(config, judges, tokenizer, length, real)
    folder, console = run_dir(config), Console()
    all_steps = possible_steps(wanted_steps, algorithm, canvas, options, console)
    common = provenance(config, file)
    generated: dict[str, Any] = {}
    warm_up(algorithm, canvas, config, options)
    for steps in all_steps:
        film = FilmStrip() if config.sampling.film else None
        found = generate(algorithm, canvas, steps, config, options, film)
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


@torch.no_grad()
def generate(
    algorithm: Algorithm,
    canvas: Canvas,
    steps: int,
    config: DictConfig,
    options: dict[str, Any],
    film: Callable[[Any], None] | None = None,
) -> Generation:
    """All samples. The noise depends on the seed and the batch, not on the number of steps or the options.

    Args:
        film: shown every moment of the first batch, whose time it adds to.
    """
    device, batches = canvas.tokens.device, config.sampling.num_sample_batches
    calls = 0

    def count_call(*_: Any) -> None:
        nonlocal calls
        calls += 1

    backbone = getattr(algorithm, "backbone", None)
    counted = backbone.register_forward_pre_hook(count_call) if isinstance(backbone, torch.nn.Module) else None
    parts, seconds = [], []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        bar = progress.add_task(f"sampling, {steps} steps", total=batches * steps)

        def on_step(moment: Any) -> None:
            progress.update(bar, advance=1, total=batches * moment.steps)
            if film is not None and not parts:
                film(moment)

        for batch in range(batches):
            generator = torch.Generator(device).manual_seed(mix_seed(config.seed, batch))
            start = time.perf_counter()
            with inference_precision(config):
                parts.append(algorithm.generate(canvas, steps, generator, on_step, **options).cpu())
            seconds.append(time.perf_counter() - start)
            if counted is not None:  # the first batch says how many; the others run without the hook
                counted.remove()
                counted = None
    return Generation(torch.cat(parts), seconds, calls or None)


def warm_up(algorithm: Algorithm, canvas: Canvas, config: DictConfig, options: dict[str, Any]) -> None:
    """One step whose samples are thrown away: what is set up at the first call is no part of the time a sample takes."""
    if has_fixed_steps(algorithm, options):  # a step of these is a position
        canvas = Canvas.blank(len(canvas.tokens), 1, canvas.tokens.device)
    with inference_precision(config):
        algorithm.generate(canvas, 1, torch.Generator(canvas.tokens.device).manual_seed(0), **options).cpu()


def possible_steps(
    wanted: list[int], algorithm: Algorithm, canvas: Canvas, options: dict[str, Any], console: Console
) -> list[int]:
    """Numbers of steps to sample with: those wanted, or the one that the canvas fixes, which is then said."""
    if not has_fixed_steps(algorithm, options):
        return wanted
    positions = int(canvas.editable.any(0).sum())
    if wanted != [positions]:
        asked = ", ".join(map(str, wanted))
        console.print(f"{type(algorithm).__name__} takes one step a position: {positions} steps, not {asked}", soft_wrap=True)
    return [positions]


def has_fixed_steps(algorithm: Algorithm, options: dict[str, Any]) -> bool:
    """Whether the sampler takes as many steps as the canvas has positions to fill, whatever it is asked for."""
    return getattr(algorithm.sampler(**options), "steps_are_fixed", False)


def number_of_samples(config: DictConfig) -> int:
    batches = config.sampling.num_sample_batches
    if not isinstance(batches, int) or batches < 1:
        raise ValueError(f"sampling.num_sample_batches must be a whole number of at least 1, not {batches}")
    return batches * config.loader.eval_batch_size


def write_texts(path: Path, rows: Sequence[Sequence[int]], tokenizer: Tokenizer) -> list[str]:
    """One line of JSON a text, with its tokens; the texts."""
    texts = [tokenizer.decode(row) for row in rows]
    lines = ({"text": text, "tokens": list(row)} for text, row in zip(texts, rows, strict=True))
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return texts


def table_of(results: dict[str, Any]) -> Table:
    """The chief numbers, a row for each number of steps and one for real text."""
    table = Table(title="nats; perplexity: " + (results["scorer"] or {"name": "no scorer"})["name"])
    for heading in ("steps", "entropy", "distinct-2", "3-gram CE", "gen ppl", "ms / sample"):
        table.add_column(heading, justify="right")
    rows = [(name, entry) for name, entry in results["generated"].items()]
    rows += [("real", results["real"])] if results["real"] is not None else []
    for name, entry in rows:
        found = entry["metrics"]
        perplexity = found["gen_ppl"][0]["ppl"] if found["gen_ppl"] else None
        numbers = (mean(found["entropy_nats"]), found["distinct_2"], mean(found["ngram_ce_nats"]), perplexity)
        cells = ["" if number is None else f"{number:.3f}" for number in numbers]
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


def step_counts(steps: Any, key: str = "sampling.steps") -> list[int]:
    """A number or a list of them, as a list."""
    counts = list(steps) if isinstance(steps, ListConfig) else [steps]
    if not counts or not all(isinstance(count, int) and count >= 1 for count in counts) or len(set(counts)) < len(counts):
        raise ValueError(f"{key} must be different whole numbers of at least 1, not {steps}")
    return counts


def sampler_options(config: DictConfig, file: CheckpointFile, algorithm: Algorithm) -> dict[str, Any]:
    """Options of the sampler: given now, else those the model was trained with in its config, else its defaults."""
    recorded = file.config.get("sampling", {})
    given = OmegaConf.to_container(config.sampling, resolve=True)
    merged = {**recorded, **{key: value for key, value in given.items() if value is not None}}
    options = {key: value for key, value in merged.items() if key not in CANVAS_KEYS and value is not None}
    try:
        algorithm.sampler(**options)
    except TypeError as error:
        raise ValueError(f"sampling: no such option for {type(algorithm).__name__}: {error}") from error
    return options


def canvas_of(config: DictConfig, algorithm: Algorithm, tokenizer: Tokenizer) -> Canvas:
    """What sampling.prompt, suffix, infill and length ask to be filled; (loader.eval_batch_size, L)."""
    wanted = config.sampling
    batch, device = config.loader.eval_batch_size, next(algorithm.parameters()).device
    if wanted.infill is not None:
        if wanted.prompt is not None or wanted.suffix is not None or wanted.length is not None:
            raise ValueError("sampling.infill gives the whole text: leave out sampling.prompt, suffix and length")
        pieces = pieces_of(wanted.infill, lambda text: tokenizer.encode_exactly(text, "sampling.infill"))
        return Canvas.from_pieces(pieces, batch, device)
    length = algorithm.length if wanted.length is None else wanted.length
    if not isinstance(length, int) or length < 1:
        raise ValueError(f"sampling.length must be a whole number of at least 1, not {length}")
    prompt, suffix = (
        tokenizer.encode_exactly(wanted[key], f"sampling.{key}") if wanted[key] else [] for key in ("prompt", "suffix")
    )
    return Canvas.between(prompt, suffix, length, batch, device)
