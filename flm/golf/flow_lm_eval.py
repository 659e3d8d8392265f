"""mode=flow_lm_eval: evaluates an embedding flow on held-out text: likelihood bound and denoising curve, also for v = 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, MinLen
from omegaconf import DictConfig
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import flm
from flm.algos.algorithm import Batch
from flm.data.byte_table import ByteTable
from flm.data.module import TextDataModule
from flm.draws import mix_seed
from flm.golf.embedding_likelihood import GRIDS, autoregressive_report, bound_report, denoising_report
from flm.ranges import DIFFERENT, Existing, OpenShare, one_of
from flm.tasks.evaluation import EvalOptions, load_model
from flm.tasks.held_out import HeldOut
from flm.tasks.machine import Machine
from flm.tasks.processes import check_alone
from flm.tasks.run import Run

CAUTION = (
    "denoising_ce_bpb is no likelihood and must not be compared with one: at t near 1 the state holds the answer, and v = 0, "
    "no model at all, gives the number beside it"
)


@dataclass(frozen=True)
class FlowLMEvalOptions:
    """The `flow_lm_eval` config, which explains its keys."""

    ends: Annotated[Sequence[OpenShare], MinLen(1), DIFFERENT] = (0.1, 0.2, 0.3, 0.5, 0.9)
    grid: Annotated[str, one_of(GRIDS)] = "inclusive"
    points: Annotated[int, Ge(2)] = 32
    beside: Existing | None = None


def flow_lm_eval(config: DictConfig) -> dict[str, Any]:
    """Writes run_dir/flow_lm_eval.json and prints the tables.

    The bound is reported for every end t1, and holds for each. The one to quote, `chosen_t1`, is the lowest on
    eval.pilot_draws training blocks; it is None if there are none.
    """
    check_alone("flow_lm_eval")
    return evaluate(Run(config))


def evaluate(run: Run) -> dict[str, Any]:
    """As `flow_lm_eval`, for a `Run`."""
    wanted, evaluation = run.options(FlowLMEvalOptions, "flow_lm_eval"), run.options(EvalOptions, "eval")
    seed, held_out = run["seed"], HeldOut.of(evaluation, run["data"], run["loader"], run["seed"])
    held_out.check_needed("flow_lm_eval")
    lm = load_model(evaluation, Machine.of(run["trainer"], run["model"]))
    if not hasattr(lm.algorithm, "denoising_curve"):
        name = type(lm.algorithm).__name__
        raise ValueError(f"{lm.source.path}: {name} is no embedding flow, which mode=flow_lm_eval needs: take mode=ppl_eval")
    other = None if wanted.beside is None else _left_to_right(wanted.beside, lm, evaluation)
    data = held_out.data(lm)
    table, bos_id, ends = ByteTable.of(lm.tokenizer), lm.tokenizer.bos_id, [float(end) for end in wanted.ends]
    batches = list(data.valid_loader())
    pilot = training_batches(data, evaluation.pilot_draws, run["loader"]["eval_batch_size"])
    draws = evaluation.draws_per_example
    with Progress(transient=True) as progress, lm.autocast():
        total = len(batches) * (1 + draws * len(ends)) + len(pilot) * len(ends)
        bar = progress.add_task("evaluating", total=total)

        def advance() -> None:
            progress.advance(bar)

        times = GRIDS[wanted.grid](wanted.points)
        curve = denoising_report(lm.algorithm, batches, table, bos_id, times, seed, advance)
        measured = bound_report(lm.algorithm, pilot, table, bos_id, ends, 1, mix_seed(seed, 1), advance) if pilot else []
        bounds = bound_report(lm.algorithm, batches, table, bos_id, ends, draws, seed, advance)
    chosen = min(measured, key=lambda row: row["nats_per_token"])["t1"] if measured else None
    result = {
        "corpus": data.corpus.describe(),
        "denoising": curve | {"grid": wanted.grid},
        "bound": bounds,
        "chosen_t1": chosen,
    }
    if other is not None:
        exact = autoregressive_report(lm.algorithm, other.algorithm, batches, table, bos_id)
        result["autoregressive"] = exact | {"checkpoint": other.source.record()}
    console = Console()
    path = run.write_json("flow_lm_eval.json", run.about("flow_lm_eval", lm) | {"flow_lm_eval": result})
    _print(console, result)
    console.print(f"written to {path}", soft_wrap=True)
    return result


def _left_to_right(path: str, lm: flm.LanguageModel, evaluation: EvalOptions) -> flm.LanguageModel:
    """The model of flow_lm_eval.beside. Raises ValueError unless it reads from left to right and has lm's tokenizer."""
    other = flm.load(path, lm.device, None, evaluation.trusted_modules)
    if not hasattr(other.algorithm, "nll"):
        raise ValueError(f"flow_lm_eval.beside={path}: {type(other.algorithm).__name__} does not read from left to right")
    if other.tokenizer.fingerprint() != lm.tokenizer.fingerprint():
        raise ValueError(f"flow_lm_eval.beside={path}: of another tokenizer than {lm.source.path}, so not of the same tokens")
    return other


def training_batches(data: TextDataModule, wanted: int, size: int) -> list[Batch]:
    """`wanted` training blocks, evenly spaced, in batches of at most `size`; empty if the corpus has no training split."""
    if "train" not in data.corpus.splits or not wanted:
        return []
    blocks = data.train_blocks()
    rows = [blocks.row(i * len(blocks) // wanted) for i in range(wanted)]
    groups = [rows[start : start + size] for start in range(0, wanted, size)]
    return [Batch(torch.stack([row.tokens for row in g]), torch.stack([row.weight for row in g])) for g in groups]


def _print(console: Console, result: dict[str, Any]) -> None:
    curve = result["denoising"]
    bound = Table(title="bound on the targets given the sources", box=SIMPLE)
    for heading in ("path ends at t1", "bits/byte", "nats/token", "+-draws", "diffusion", "reconstruction", "v = 0 bits/byte"):
        bound.add_column(heading, justify="right")
    for row in result["bound"]:
        error = row["standard_error_nats"]
        bound.add_row(
            f"{row['t1']:g}" + " *" * (row["t1"] == result["chosen_t1"]),
            f"{row['bits_per_byte']:.4f}",
            f"{row['nats_per_token']:.4f}",
            "" if error is None else f"{error:.4f}",
            f"{row['diffusion_nats_per_token']:.4f}",
            f"{row['reconstruction_nats_per_token']:.4f}",
            f"{row['zero_velocity_bits_per_byte']:.4f}",
        )
    console.print(bound)
    if "autoregressive" in result:
        exact = result["autoregressive"]
        numbers = f"{exact['bits_per_byte']:.4f} bits/byte, {exact['nats_per_token']:.4f} nats/token"
        console.print(f"exact, of the same targets, by the model of flow_lm_eval.beside from left to right: {numbers}")
    if result["chosen_t1"] is not None:
        console.print("* the lowest on training text")
    table = Table(title=f"cross-entropy of the denoised state, {curve['grid']} grid of {len(curve['times'])}", box=SIMPLE)
    for heading in ("t", "nats/token", "v = 0"):
        table.add_column(heading, justify="right")
    rows = list(zip(curve["times"], curve["ce_nats_per_token"], curve["zero_velocity_ce_nats_per_token"], strict=True))
    for t, model, control in rows:
        table.add_row(f"{t:.3f}", f"{model:.4f}", f"{control:.4f}")
    table.add_section()
    table.add_row("bits/byte", f"{curve['denoising_ce_bpb']:.4f}", f"{curve['zero_velocity_denoising_ce_bpb']:.4f}")
    console.print(table)
    console.print(CAUTION, soft_wrap=True)
