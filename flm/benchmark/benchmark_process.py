"""What one process of mode=benchmark does: builds a model with random weights and times one thing."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import hydra
import torch
from torch import Tensor, nn

from flm.algos.algorithm import Algorithm, Batch
from flm.benchmark.dense_twin import TWINS
from flm.checkpoints.build import build_algorithm
from flm.draws import Draws
from flm.outputs import RawOutput
from flm.posterior import TokenPosterior, chunks, padded_copy
from flm.samplers.canvas import Canvas
from flm.tasks.machine import compilation, compile_networks
from flm.training.average import Average
from flm.training.cost import FlopCount, peak_memory_mb

STEP, SAMPLING = "training_step", "sampling"


@dataclass(frozen=True)
class Job:
    """Plain values only: it crosses to another process.

    Attributes:
        what: STEP or SAMPLING.
        config: the resolved config, whose node `algo` is what to measure.
        teachers: argument name to node `algo` of a model to learn from.
        trusted_modules: see `build`.
        twin: measure that one of its `TWINS` in its place; None: itself.
        device: where.
        sampler_options: of the algorithm's sampler.
    """

    what: str
    config: dict[str, Any]
    teachers: dict[str, dict[str, Any]]
    trusted_modules: tuple[str, ...]
    twin: str | None
    device: str
    sampler_options: dict[str, Any]


def run(job: Job, send: Any) -> None:
    """Sends what was measured, or {"failed": why} where memory did not do, through a pipe."""
    try:
        send.send(step(job) if job.what == STEP else sampling(job))
    except torch.OutOfMemoryError:
        send.send({"failed": "out of memory"})


def build(job: Job) -> Algorithm:
    torch.manual_seed(job.config["seed"])
    vocab_size = job.config["benchmark"]["vocab_size"]

    def model(node: dict[str, Any], **teachers: Algorithm) -> Algorithm:
        return build_algorithm({**job.config, "algo": node}, vocab_size, job.trusted_modules, **teachers)

    teachers = {name: model(node) for name, node in job.teachers.items()}
    algorithm = model(job.config["algo"], **teachers)
    device = torch.device(job.device)
    compile_networks(algorithm, compilation(job.config["model"].get("compile"), device), device)
    return algorithm.to(device)


def step(job: Job) -> dict[str, Any]:
    """Training steps as a run takes them: forward, backward, clipping, optimiser, average of the weights."""
    settings, device = job.config["benchmark"], torch.device(job.device)
    algorithm = build(job).train()
    twin = None if job.twin is None else TWINS[type(algorithm)][job.twin]
    trained = [(name, p) for name, p in algorithm.named_parameters() if p.requires_grad]
    optimizer = hydra.utils.instantiate(job.config["optim"])(trained)
    average = Average(algorithm, job.config["training"]["ema"]) if job.config["training"]["ema"] else None
    algorithm.averaged_weights = None if average is None else average.weights
    clip = job.config["trainer"]["gradient_clip_val"]
    shape = _shape(job)
    last: list[Tensor] = []

    def one(index: int, batch: Batch) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            draws = Draws(job.config["seed"], index, device=device)
            loss = algorithm.loss(batch, draws).total if twin is None else twin.loss(algorithm, batch, draws)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_([p for _, p in trained], clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if average is not None:
            average.update(algorithm)
        last[:] = [loss.detach()]

    seconds = []
    with FlopCount().watching(algorithm.every_module()) as count:
        for index in range(settings["warm_up"] + settings["steps"]):
            generator = torch.Generator().manual_seed(index)
            tokens = torch.randint(settings["vocab_size"], shape, generator=generator).to(device)
            batch = Batch(tokens, torch.ones(shape, device=device))
            if index == settings["warm_up"]:
                count.total = 0
            seconds.append(_timed(partial(one, index, batch), device))
    parameters = sum(p.numel() * p.element_size() for p in algorithm.parameters())
    return median_of(seconds[settings["warm_up"] :]) | {
        "flops": count.total / settings["steps"] if count.watched else None,
        "peak_memory_mb": peak_memory_mb(device),
        "parameter_memory_mb": parameters / 2**20,
        "loss": last[0].item(),
    }


@torch.no_grad()
def sampling(job: Job) -> dict[str, Any]:
    """Sampling in benchmark.sampling_steps steps, and in turn, as many times, two things to compare it with.

    `parts` is what no flow sampler can do without: each network that a step calls, and the expected row of its input table
    under its prediction. `trunk_and_logits` is the network and its logits alone. Left out for samplers that fix their steps,
    whose calls differ, and for twins.
    """
    settings, device = job.config["benchmark"], torch.device(job.device)
    algorithm = build(job).eval()
    twin = None if job.twin is None else TWINS[type(algorithm)][job.twin].sample
    steps, canvas = settings["sampling_steps"], Canvas.blank(*_shape(job), device)
    fixed = getattr(algorithm.sampler(**job.sampler_options), "steps_are_fixed", False)

    def generate(steps: int) -> Tensor:
        generator = torch.Generator(device).manual_seed(job.config["seed"])
        if twin is not None:
            return twin(algorithm, canvas, steps, generator)
        return algorithm.generate(canvas, steps, generator, **job.sampler_options)

    def each_step(calls: list[Call], end: Callable[[Call, Any], Any]) -> Span:
        def evaluate() -> None:
            for _ in range(steps):
                for call in calls:
                    end(call, call.network(*call.arguments, **call.options))

        return _timed(evaluate, device)

    whole, needed, least = [], [], []
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        calls = [] if fixed or twin is not None else _calls(algorithm, lambda: generate(1))
        generate(2)  # compiles, and whatever else is done once
        for _ in range(settings["samplings"]):
            whole.append(_timed(lambda: generate(steps), device))
            if calls:
                needed.append(each_step(calls, lambda call, output: output.expected((call.network.input_table,))))
                least.append(each_step(calls, lambda call, output: logits(output)))
    return median_of(whole) | {
        "parts": median_of(needed) if needed else None,
        "trunk_and_logits": median_of(least) if least else None,
        "steps": canvas.tokens.shape[1] if fixed else steps,
        "peak_memory_mb": peak_memory_mb(device),
    }


def logits(output: TokenPosterior | RawOutput) -> None:
    """All logits of a prediction, chunk by chunk, in the precision in which losses and expectations multiply."""
    hidden = output.hidden.flatten(0, -2)
    table = padded_copy(hidden, output.table)
    for part in chunks(len(hidden), output.vocab_size, hidden.device):
        with torch.autocast(hidden.device.type, enabled=False):
            hidden[part].to(table.dtype) @ table.T


@dataclass(frozen=True)
class Call:
    """One evaluation of a network."""

    network: nn.Module
    arguments: tuple[Any, ...]
    options: dict[str, Any]


def _calls(algorithm: Algorithm, function: Callable[[], Any]) -> list[Call]:
    """Evaluations that a function makes of networks with an input table."""
    calls: list[Call] = []

    def note(network: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], _: Any) -> None:
        calls.append(Call(network, arguments, options))

    networks = [module for module in algorithm.modules() if hasattr(module, "input_table")]
    handles = [network.register_forward_hook(note, with_kwargs=True) for network in networks]
    try:
        function()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _shape(job: Job) -> tuple[int, int]:
    """Sequences on one device, and positions."""
    loader = job.config["loader"]
    return loader["batch_size"] or loader["global_batch_size"], job.config["model"]["length"]


@dataclass(frozen=True)
class Span:
    """How long something took by the clock, and how long the process computed, all its threads together."""

    seconds: float
    processor_seconds: float


def _timed(function: Callable[[], Any], device: torch.device) -> Span:
    start, computed = time.perf_counter(), time.process_time()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return Span(time.perf_counter() - start, time.process_time() - computed)


def median_of(spans: list[Span]) -> dict[str, float]:
    return {
        "seconds": statistics.median(span.seconds for span in spans),
        "processor_seconds": statistics.median(span.processor_seconds for span in spans),
    }
