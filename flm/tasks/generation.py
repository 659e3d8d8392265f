"""Samples as the `sampling` node asks for them: how many, of which text, with which sampler, and their making."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from flm.algos.algorithm import Algorithm
from flm.checkpoints.model_file import ModelSource
from flm.data.tokenizers import Tokenizer
from flm.draws import mix_seed
from flm.samplers.canvas import Canvas
from flm.samplers.options import sampler_for
from flm.samplers.template import CANVAS_KEYS, CanvasOptions, pieces_of
from flm.schema import check
from flm.tasks.assemble import inference_precision
from flm.tasks.processes import Team


@dataclass(frozen=True)
class Generation:
    """Samples of one setting.

    Attributes:
        tokens: (N, L) on the CPU.
        batch_seconds: of each batch on the device that made it, the tokens' way back to the CPU included.
        network_evaluations: calls of the algorithm's `backbone` for one batch; None where it has none, or it is not called
            as a module.
    """

    tokens: Tensor
    batch_seconds: list[float]
    network_evaluations: int | None

    def timing(self) -> dict[str, float | int | None]:
        """For result files, of one device. Rates leave out the first batch, which may be filmed, unless it is the only one."""
        timed = self.batch_seconds[1:] or self.batch_seconds
        per_sample = sum(timed) / (len(timed) * len(self.tokens) / len(self.batch_seconds))
        return {
            "seconds": sum(self.batch_seconds),
            "ms_per_sample": 1000 * per_sample,
            "tokens_per_second": self.tokens.shape[1] / per_sample,
            "network_evaluations": self.network_evaluations,
        }


@torch.no_grad()
def generate(
    algorithm: Algorithm,
    canvas: Canvas,
    steps: int,
    config: DictConfig,
    options: dict[str, Any],
    team: Team,
    film: Callable[[Any], None] | None = None,
) -> Generation:
    """All samples, of which each process makes its share of the batches; the first one has them all, the others zeros.

    The noise depends on the seed and the batch, not on the number of steps, the options or the number of processes.

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
    tokens = torch.zeros(batches, *canvas.tokens.shape, dtype=torch.int64)
    seconds = torch.zeros(batches, dtype=torch.float64)
    share = team.share(batches)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not team.is_first) as progress:
        bar = progress.add_task(f"sampling, {steps} steps", total=len(share) * steps)
        for batch in share:

            def on_step(moment: Any, batch: int = batch) -> None:
                progress.update(bar, advance=1, total=len(share) * moment.steps)
                if film is not None and batch == 0:
                    film(moment)

            generator = torch.Generator(device).manual_seed(mix_seed(config.seed, batch))
            start = time.perf_counter()
            with inference_precision(config):
                tokens[batch] = algorithm.generate(canvas, steps, generator, on_step, **options).cpu()
            seconds[batch] = time.perf_counter() - start
            if counted is not None:  # the first batch says how many; the others run without the hook
                counted.remove()
                counted = None
    if counted is not None:  # a process without a share
        counted.remove()
    team.add_up(tokens, seconds)
    return Generation(tokens.flatten(0, 1), seconds.tolist(), calls or None)


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


def check_sampling(node: Mapping[str, Any]) -> None:
    """Raises ValueError unless the keys of the `sampling` config that are no options of a sampler are as they may be."""
    canvas = {key: value for key, value in node.items() if key in CANVAS_KEYS}
    check(CanvasOptions, canvas, "sampling")
    if canvas.get("infill") is not None and any(canvas.get(key) is not None for key in ("prompt", "suffix", "length")):
        raise ValueError("sampling.infill gives the whole text: leave out sampling.prompt, suffix and length")


def given_options(node: DictConfig) -> dict[str, Any]:
    """Options of the sampler among the keys of a `sampling` config; null leaves one to the sampler."""
    given = OmegaConf.to_container(node, resolve=True)
    return {key: value for key, value in given.items() if key not in CANVAS_KEYS and value is not None}


def number_of_samples(config: DictConfig) -> int:
    return config.sampling.num_sample_batches * config.loader.eval_batch_size


def step_counts(steps: Any) -> list[int]:
    """A number or a list of them, as a list."""
    return list(steps) if isinstance(steps, ListConfig) else [steps]


def sampler_options(config: DictConfig, file: ModelSource, algorithm: Algorithm) -> dict[str, Any]:
    """Options of the sampler: given now, else those the model was trained with in its config, else its defaults."""
    recorded = file.config.get("sampling", {})
    recorded = {key: value for key, value in recorded.items() if key not in CANVAS_KEYS and value is not None}
    options = recorded | given_options(config.sampling)
    sampler_for(algorithm, options, "sampling")
    return options


def canvas_of(config: DictConfig, algorithm: Algorithm, tokenizer: Tokenizer) -> Canvas:
    """What sampling.prompt, suffix, infill and length ask to be filled; (loader.eval_batch_size, L)."""
    wanted = config.sampling
    batch, device = config.loader.eval_batch_size, next(algorithm.parameters()).device
    if wanted.infill is not None:
        pieces = pieces_of(wanted.infill, lambda text: tokenizer.encode_exactly(text, "sampling.infill"))
        return Canvas.from_pieces(pieces, batch, device)
    length = algorithm.length if wanted.length is None else wanted.length
    prompt, suffix = (
        tokenizer.encode_exactly(wanted[key], f"sampling.{key}") if wanted[key] else [] for key in ("prompt", "suffix")
    )
    return Canvas.between(prompt, suffix, length, batch, device)
