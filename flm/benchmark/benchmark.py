"""mode=benchmark: what training steps and sampling cost, beside twins and other algorithms of the same size.

Everything is measured in fresh processes of its own, in turn, so that peak memory is its own and all meet the same machine.
Models and teachers have random weights; no data are read.
"""

import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import hydra
from annotated_types import Ge
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from flm.benchmark.benchmark_process import SAMPLING, STEP, Job, run
from flm.benchmark.dense_twin import TWINS
from flm.config_files import CONFIGS
from flm.ranges import Count, Index, Text
from flm.samplers.canvas import CANVAS_KEYS
from flm.tasks.assemble import targets
from flm.tasks.machine import device_of
from flm.tasks.run import Run
from flm.training.cost import device_name, peak_flops

ALGOS = CONFIGS / "algo"
COMPARED = ("parts", "trunk_and_logits")  # of sampling: see `benchmark_process.sampling`


@dataclass(frozen=True)
class BenchmarkOptions:
    """The `benchmark` config; keys explained there."""

    vocab_size: Annotated[int, Ge(2)] = 50257
    against: Sequence[Text] = ()
    twins: bool = True
    warm_up: Index = 1
    steps: Count = 2
    sampling_steps: Count | None = 4
    samplings: Count = 2
    rounds: Count = 2
    teachers: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)


def benchmark(config: DictConfig) -> dict[str, Any]:
    """Measures, writes run_dir/benchmark.json and prints tables.

    Returns:
        `training_step` and `sampling`, by name of the algorithm ("flm_dense" for a twin of flm), `ratios` of seconds and
        memory by name, and `targets`.
    """
    run = Run(without_paths(config))
    settings, loader, model = run["benchmark"], run["loader"], run["model"]
    device = device_of(run["trainer"]["accelerator"])
    jobs = _jobs(run.config)
    measured: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number, (key, job) in enumerate(list(jobs.items()) * settings["rounds"], 1):
        found = _in_a_process(job)
        measured.setdefault(key, []).append(found)
        print(f"{number}/{settings['rounds'] * len(jobs)} {_line(*key, found)}", flush=True)
    tokens = (loader["batch_size"] or loader["global_batch_size"]) * model["length"]
    peak = (run["callbacks"].get("throughput") or {}).get("peak_flops_per_second")
    peak = peak_flops(device) if peak is None else peak
    result: dict[str, Any] = {"kind": "benchmark", "device": device_name(device)}
    result |= {"peak_flops_per_second": peak, STEP: {}, SAMPLING: {}}
    for (what, name), runs in measured.items():
        result[what][name] = _summary(what, runs, tokens, peak, _measure(result))
    own = next(iter(jobs))[1]
    for what in (STEP, SAMPLING):
        if "failed" in result[what].get(own, {}):
            raise ValueError(f"benchmark: {what} of {own} did not finish: {result[what][own]['failed']}")
    result["ratios"] = ratios(result)
    result["targets"] = targets_met(settings, result)
    run.write_json("benchmark.json", run.provenance() | result)
    size = f"V {settings['vocab_size']}, {tokens // model['length']} x {model['length']} tokens, D {model.get('hidden_size')}"
    _print(result, size, settings["sampling_steps"])
    return result


def without_paths(config: DictConfig) -> DictConfig:
    """A copy in which `algo` names no checkpoint: teachers are random, of benchmark.teachers."""
    config = config.copy()
    for key in config.algo:
        if key.endswith("_path"):
            config.algo[key] = None
    return config


def _jobs(plain: dict[str, Any]) -> dict[tuple[str, str], Job]:
    """(what, name) to the job that measures it; those of the config's own algorithm come first.

    Args:
        plain: the whole config, which every job takes to its process.
    """
    settings, device = plain["benchmark"], str(device_of(plain["trainer"]["accelerator"]))
    own = _name(plain["algo"])
    nodes = {own: plain["algo"]} | {name: _node(name) for name in settings["against"]}
    jobs: dict[tuple[str, str], Job] = {}
    wanted = [STEP] if settings["sampling_steps"] is None else [STEP, SAMPLING]
    options = {key: value for key, value in plain["sampling"].items() if key not in CANVAS_KEYS and value is not None}
    for name, node in nodes.items():
        asked = {key.removesuffix("_path") for key in node if key.endswith("_path")}
        known = settings["teachers"].get(name, {})
        if unknown := asked - set(known):
            raise ValueError(f"benchmark.teachers.{name}: say which algo config {', '.join(sorted(unknown))} is of, or null")
        teachers = {argument: _node(of) for argument, of in known.items() if argument in asked and of is not None}
        trusted = {target.rpartition(".")[0] for part in (node, plain["model"]) for target in targets(part)}
        twins = TWINS.get(hydra.utils.get_class(node["_target_"]), {}) if settings["twins"] else {}
        of_own = options if name == own else {}
        for what in wanted:
            job = Job(what, plain | {"algo": node}, teachers, tuple(sorted(trusted)), None, device, of_own)
            jobs[what, name] = job
            for label, twin in twins.items():
                if what == STEP or twin.sample is not None:
                    jobs[what, f"{name}_{label}"] = replace(job, twin=label)
    return jobs


def _name(node: dict[str, Any]) -> str:
    """The config that a node came from, or else its class."""
    for path in sorted(ALGOS.glob("*.yaml")):
        if OmegaConf.load(path).get("_target_") == node["_target_"]:
            return path.stem
    return node["_target_"].rpartition(".")[2]


def _node(name: str) -> dict[str, Any]:
    path = ALGOS / f"{name}.yaml"
    if not path.exists():
        choices = ", ".join(sorted(path.stem for path in ALGOS.glob("*.yaml")))
        raise ValueError(f"benchmark: there is no algo config {name}; there are {choices}")
    node = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(node, dict)
    return node


def _in_a_process(job: Job) -> dict[str, Any]:
    spawn = multiprocessing.get_context("spawn")
    receive, send = spawn.Pipe(duplex=False)
    process = spawn.Process(target=run, args=(job, send))
    process.start()
    send.close()
    try:
        found = receive.recv()
    except EOFError:
        found = None
    finally:
        process.join()
    # an error of the program ends with status 1 and its traceback; the system kills what wants too much memory
    if found is None and process.exitcode == 1:
        raise ValueError("benchmark: a process failed, see its traceback above")
    return {"failed": f"killed (status {process.exitcode}), for want of memory perhaps"} if found is None else found


def _measure(result: dict[str, Any]) -> str:
    """What is compared: on a CPU the time spent computing, since machines are shared and the clock runs for all."""
    return "processor_seconds" if result["device"] == "cpu" else "seconds"


def _summary(
    what: str, runs: list[dict[str, Any]], tokens: int, peak: float | None, measure: str = "seconds"
) -> dict[str, Any]:
    """Of the process that was fastest by `measure`; memory is the largest that any took."""
    failed = [found for found in runs if "failed" in found]
    if failed:
        return failed[0]
    fastest = min(runs, key=lambda found: found[measure])
    found = fastest | {"peak_memory_mb": max(found["peak_memory_mb"] for found in runs)}
    found["tokens_per_second"] = tokens / fastest["seconds"]
    if what == STEP:
        flops = found.pop("flops")
        known = flops is not None and peak is not None
        found["model_flops"] = flops
        found["model_flop_utilisation"] = flops / fastest["seconds"] / peak if known else None
    return found


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Every pair "a/b" of "step_seconds", "step_memory" and "sampling_seconds", and "sampling_seconds a/C", C of `COMPARED`."""
    found, measure = {}, _measure(result)
    for what, label in ((STEP, "step"), (SAMPLING, "sampling")):
        whole = {name: row for name, row in result[what].items() if "failed" not in row}
        for a, one in whole.items():
            for b, other in whole.items():
                if a != b:
                    found[f"{label}_seconds {a}/{b}"] = one[measure] / other[measure]
                    if what == STEP:
                        found[f"{label}_memory {a}/{b}"] = one["peak_memory_mb"] / other["peak_memory_mb"]
            for other_thing in COMPARED:
                if one.get(other_thing) is not None:
                    found[f"{label}_seconds {a}/{other_thing}"] = one[measure] / one[other_thing][measure]
    return found


def targets_met(settings: Mapping[str, Any], result: dict[str, Any]) -> list[dict[str, Any]]:
    """benchmark.at_least and at_most against what was found; a quantity that was not measured has the value None."""
    quantities = dict(result["ratios"])
    for name, row in result[STEP].items():
        for key in ("tokens_per_second", "model_flop_utilisation"):
            quantities[f"{key} {name}"] = row.get(key)
    found = []
    for kind in ("at_least", "at_most"):
        for quantity, bound in settings[kind].items():
            value = quantities.get(quantity)
            met = None if value is None else value >= bound if kind == "at_least" else value <= bound
            found.append({"quantity": quantity, kind: bound, "value": value, "met": met})
    return found


def _print(result: dict[str, Any], size: str, sampling_steps: int | None) -> None:
    console = Console()
    steps = Table(title=f"training step on {result['device']}: {size}")
    samples = Table(title=f"sampling, {sampling_steps} steps: {size}")
    for table, headings in (
        (steps, ("", "s / step", "of processor", "tokens / s", "utilisation", "peak memory, MB", "loss")),
        (samples, ("", "seconds", "of processor", "over its parts", "over trunk + logits", "peak memory, MB")),
    ):
        for heading in headings:
            table.add_column(heading, justify="right")
    for name, row in result[STEP].items():
        keys = ("seconds", "processor_seconds", "tokens_per_second", "model_flop_utilisation", "peak_memory_mb", "loss")
        steps.add_row(name, *([row["failed"]] if "failed" in row else [_cell(row[key]) for key in keys]))
    for name, row in result[SAMPLING].items():
        over = (result["ratios"].get(f"sampling_seconds {name}/{thing}") for thing in COMPARED)
        numbers = (row.get("seconds"), row.get("processor_seconds"), *over, row.get("peak_memory_mb"))
        cells = [row["failed"]] if "failed" in row else [_cell(number) for number in numbers]
        samples.add_row(name, *cells)
    console.print(steps)
    if result[SAMPLING]:
        console.print(samples)
    own = next(iter(result[STEP]))
    for quantity, value in result["ratios"].items():
        if quantity.endswith(f"/{own}"):
            console.print(f"{quantity}: {value:.3f}", highlight=False)
    for target in result["targets"]:
        kind = "at_least" if "at_least" in target else "at_most"
        verdict = {True: "met", False: "MISSED", None: "not measured"}[target["met"]]
        line = f"{verdict}: {target['quantity']} {kind.replace('_', ' ')} {target[kind]}, found {_cell(target['value'])}"
        console.print(line, highlight=False, soft_wrap=True)


def _line(what: str, name: str, found: dict[str, Any]) -> str:
    """One process that has ended."""
    label = f"{what.replace('_', ' ')}, {name}"
    if "failed" in found:
        return f"{label}: {found['failed']}"
    seconds = f"{_cell(found['seconds'])} s, of processor {_cell(found['processor_seconds'])}"
    return f"{label}: {seconds}, peak memory {_cell(found['peak_memory_mb'])} MB"


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
