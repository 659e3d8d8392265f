"""mode=benchmark: what a training step costs, against the dense twin that builds (B, L, V) tensors.

Each variant runs in fresh processes of its own, in turn, so that peak memory is its own and both meet the same machine.
"""

import json
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from flm.algos.algorithm import Algorithm, Batch
from flm.draws import Draws
from flm.evaluation.dense import dense_loss
from flm.tasks.assemble import device_of, new_algorithm, run_dir
from flm.tasks.results import provenance, write_json


def v_free_step(algorithm: Algorithm, batch: Batch, draws: Draws) -> torch.Tensor:
    return algorithm.loss(batch, draws).total


def dense_step(algorithm: Algorithm, batch: Batch, draws: Draws) -> torch.Tensor:
    """The same loss from (B, L, V) noise, states and log-probabilities."""
    tau = draws.stratified(len(batch.tokens))
    t = algorithm.clock.time(tau).float()
    noise = draws.normal(*batch.tokens.shape, algorithm.vocab_size)
    weight = batch.weight / batch.weight.sum()
    return dense_loss(algorithm.backbone, batch.tokens, weight, t, tau.float(), noise)


VARIANTS = {"v_free": v_free_step, "dense": dense_step}


def benchmark(config: DictConfig) -> dict[str, Any]:
    """Times benchmark.steps optimiser steps of each variant; writes run_dir/benchmark.json and prints a table."""
    folder = run_dir(config)
    plain = OmegaConf.to_container(config, resolve=True)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    spawn = multiprocessing.get_context("spawn")
    for _ in range(config.benchmark.rounds):
        for name in VARIANTS:
            receive, send = spawn.Pipe(duplex=False)
            process = spawn.Process(target=_measure, args=(name, plain, send))
            process.start()
            send.close()
            try:
                measured[name].append(receive.recv())
            except EOFError as error:
                raise ValueError(f"benchmark: the {name} step did not finish, for want of memory perhaps") from error
            finally:
                process.join()
    tokens = config.loader.global_batch_size * config.model.length
    result = {
        name: {
            "seconds_per_step": (seconds := min(run["seconds"] for run in runs)),
            "tokens_per_second": tokens / seconds,
            "peak_memory_mb": max(run["peak_memory_mb"] for run in runs),
            "parameter_memory_mb": runs[0]["parameter_memory_mb"],
            "loss": runs[0]["loss"],
        }
        for name, runs in measured.items()
    }
    write_json(folder / "benchmark.json", provenance(config) | {"training_step": result})
    _print(result, config)
    return result


def _measure(name: str, plain: dict[str, Any], send) -> None:
    config = OmegaConf.create(plain)
    device = device_of(config)
    algorithm = new_algorithm(config, config.benchmark.vocab_size).to(device)
    optimizer = torch.optim.AdamW(algorithm.parameters(), lr=1e-4)
    shape = (config.loader.global_batch_size, config.model.length)
    seconds, loss = [], torch.zeros(())
    for step in range(config.benchmark.steps + 1):  # the first warms up
        tokens = torch.randint(config.benchmark.vocab_size, shape, generator=torch.Generator().manual_seed(step)).to(device)
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = VARIANTS[name](algorithm, Batch(tokens, torch.ones(shape, device=device)), Draws(0, step, device=device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = _peak_resident_mb()
    parameters = sum(p.numel() * p.element_size() for p in algorithm.parameters()) / 2**20
    values = {"seconds": statistics.median(seconds[1:]), "peak_memory_mb": peak, "parameter_memory_mb": parameters}
    send.send(json.loads(json.dumps(values | {"loss": loss.item()})))


def _peak_resident_mb() -> float:
    """Of this process since it was started. Linux's ru_maxrss will not do: it begins at what the parent held."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**10 if sys.platform != "darwin" else 2**20)  # kilobytes, on macOS bytes


def _print(result: dict[str, dict[str, float]], config: DictConfig) -> None:
    table = Table(
        title=f"training step, V = {config.benchmark.vocab_size}, "
        f"{config.loader.global_batch_size} x {config.model.length} tokens, D = {config.model.hidden_size}"
    )
    for heading in ("", "s / step", "tokens / s", "peak memory, MB", "parameters, MB", "loss"):
        table.add_column(heading, justify="right")
    for name, row in result.items():
        numbers = (f"{row[key]:.4g}" for key in ("seconds_per_step", "tokens_per_second", "peak_memory_mb"))
        table.add_row(name, *numbers, f"{row['parameter_memory_mb']:.0f}", f"{row['loss']:.3f}")
    Console().print(table)
