"""mode=sample_eval: texts from a checkpoint, at one or several numbers of steps."""

import json
import re
import time
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from flm.algos.algorithm import Algorithm
from flm.checkpoints.load import CheckpointFile
from flm.data.tokenizers import Tokenizer
from flm.draws import mix_seed
from flm.samplers.canvas import Canvas
from flm.tasks.assemble import load_for_evaluation, run_dir
from flm.tasks.results import provenance, write_json, write_text

# The keys of `sampling` that say what to fill; all others are options of the sampler.
CANVAS_KEYS = ("steps", "num_sample_batches", "length", "prompt", "suffix", "infill")
_HOLE = re.compile(r"\[(\d+)\]")


def sample_eval(config: DictConfig) -> dict[str, Any]:
    """Samples from eval.checkpoint_path, prints some, writes all to run_dir/samples-<steps>.jsonl and results.json."""
    all_steps = step_counts(config)
    algorithm, file, tokenizer = load_for_evaluation(config)
    canvas = canvas_of(config, algorithm, tokenizer)
    options = sampler_options(config, file, algorithm)
    folder = run_dir(config)
    console = Console()
    results: dict[str, Any] = {"samples": {}}
    for steps in all_steps:
        tokens, seconds = generate(algorithm, canvas, steps, config, options)
        texts = [tokenizer.decode(row) for row in tokens.tolist()]
        rows = [{"text": text, "tokens": row} for text, row in zip(texts, tokens.tolist(), strict=True)]
        path = folder / f"samples-{steps}.jsonl"
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        results["samples"][str(steps)] = {"file": path.name, "count": len(texts), "seconds": seconds}
        console.rule(f"{steps} step{'s' * (steps > 1)}")
        for text in texts[:3]:
            console.print(escape(text), soft_wrap=True)
            console.print()
    write_json(folder / "results.json", provenance(config, file) | results)
    console.print(f"samples and results: {folder}")
    return results


@torch.no_grad()
def generate(
    algorithm: Algorithm, canvas: Canvas, steps: int, config: DictConfig, options: dict[str, Any]
) -> tuple[Tensor, float]:
    """All samples (N, L) on the CPU, and the seconds they took. The noise does not depend on the number of steps."""
    device = canvas.tokens.device
    if config.sampling.num_sample_batches < 1:
        raise ValueError("sampling.num_sample_batches must be at least 1")
    batches, start = [], time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        bar = progress.add_task(f"sampling, {steps} steps", total=config.sampling.num_sample_batches * steps)
        for batch in range(config.sampling.num_sample_batches):
            generator = torch.Generator(device).manual_seed(mix_seed(config.seed, batch))
            tokens = algorithm.generate(canvas, steps, generator, lambda _: progress.advance(bar), **options)
            batches.append(tokens.cpu())
    return torch.cat(batches), time.perf_counter() - start


def step_counts(config: DictConfig) -> list[int]:
    steps = config.sampling.steps
    counts = list(steps) if isinstance(steps, ListConfig) else [steps]
    if not counts or not all(isinstance(count, int) and count >= 1 for count in counts):
        raise ValueError(f"sampling.steps must be whole numbers of at least 1, not {steps}")
    return counts


def sampler_options(config: DictConfig, file: CheckpointFile, algorithm: Algorithm) -> dict[str, Any]:
    """Options of the sampler: given now, else those the model was trained with in its config, else its defaults."""
    recorded = file.config.get("sampling", {})
    merged = {**recorded, **{key: value for key, value in config.sampling.items() if value is not None}}
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
        return Canvas.from_pieces(pieces_of(wanted.infill, tokenizer), batch, device)
    prompt, suffix = (tokenizer.encode(text) if text else [] for text in (wanted.prompt, wanted.suffix))
    return Canvas.between(prompt, suffix, wanted.length or algorithm.length, batch, device)


def pieces_of(template: str, tokenizer: Tokenizer) -> list[list[int] | int]:
    """ "The [8] sat." to given tokens and holes.

    Raises:
        ValueError: the template has no hole.
    """
    parts = _HOLE.split(template)  # text, count, text, count, ..., text
    if len(parts) == 1:
        raise ValueError(f"sampling.infill={template!r} has no hole: write the number of tokens to fill in brackets, [8]")
    return [int(part) if index % 2 else tokenizer.encode(part) for index, part in enumerate(parts)]
