"""mode=golf_eval: bits per byte of held-out text, read as one stream, as the parameter-golf track counts them.

There are three methods: windows without overlap, sliding windows, and sliding windows with test-time training on the text that
has already been scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import MinLen
from omegaconf import DictConfig
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from flm.data.byte_table import ByteTable
from flm.data.module import TextDataModule
from flm.golf.scored_stream import Reading, score
from flm.golf.test_time_training import TestTimeTraining, score_then_train
from flm.likelihood.bits_per_byte import ByteTally
from flm.ranges import CalledWith, Count
from flm.tasks.evaluation import EvalOptions, load_model
from flm.tasks.held_out import HeldOut
from flm.tasks.machine import Machine
from flm.tasks.processes import ALONE, Team, team_of
from flm.tasks.run import Run

BLOCKS, SLIDING, TRAINED = METHODS = ("blocks", "sliding", "test_time_training")


@dataclass(frozen=True)
class GolfEvalOptions:
    """The `golf_eval` config, which explains its keys."""

    methods: Annotated[Sequence[Literal["blocks", "sliding", "test_time_training"]], MinLen(1)] = METHODS
    window: Count | None = None
    stride: Count = 64
    chunk_tokens: Count | None = None
    max_tokens: Count | None = None
    test_time_training: Annotated[TestTimeTraining, CalledWith.of("seed")] = field(default_factory=TestTimeTraining)


def golf_eval(config: DictConfig) -> dict[str, Any]:
    """Scores the held-out text of the corpus that eval.real_data names. Writes run_dir/golf_eval.json and prints a table.

    Several processes share the chunks. With test-time training they share the windows of each chunk instead, and the first
    process trains. Only the first process writes and prints. The numbers are the same as those of one process.
    """
    run = Run(config)
    with team_of(Machine.of(run["trainer"], run["model"]).device) as team:
        return evaluate(run, team)


def evaluate(run: Run, team: Team = ALONE) -> dict[str, Any]:
    """As `golf_eval`, for a `Run`. Returns an empty dict in all processes but the first."""
    wanted, evaluation = run.options(GolfEvalOptions, "golf_eval"), run.options(EvalOptions, "eval")
    held_out = HeldOut.of(evaluation, run["data"], run["loader"], run["seed"])
    held_out.check_needed("golf_eval")
    settings = replace(wanted.test_time_training, seed=run["seed"])
    lm = load_model(evaluation, Machine.of(run["trainer"], run["model"]))
    if not hasattr(lm.algorithm, "predictions"):
        raise ValueError(
            f"{lm.source.path}: {type(lm.algorithm).__name__} does not read from left to right, which mode=golf_eval needs: "
            f"take mode={lm.algorithm.scored_by or 'ppl_eval'}"
        )
    window, batch = wanted.window or lm.length, run["loader"]["eval_batch_size"]
    chunk = wanted.chunk_tokens or 16 * window
    readings = {
        method: Reading(window, window if method == BLOCKS else wanted.stride, chunk, batch)
        for method in METHODS
        if method in wanted.methods
    }
    table, data = ByteTable.of(lm.tokenizer), held_out.data(lm)
    if data.corpus.conditional:
        raise ValueError(
            f"mode=golf_eval scores all of a text, and of {data.corpus.describe()} a part is given: take mode=ppl_eval"
        )
    text = _text(data, wanted.max_tokens)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    rows = {}
    with Progress(*columns, transient=True, disable=not team.is_first) as progress, lm.autocast():
        for method, reading in readings.items():
            chunks = reading.num_chunks(len(text) - 1)
            bar = progress.add_task(method, total=chunks if method == TRAINED else len(team.share(chunks)))
            sharing = None if team.group is None else team

            def after(chunk: Any, bar: Any = bar) -> None:
                progress.advance(bar)

            if method == TRAINED:
                tally = score_then_train(lm.algorithm, text, reading, settings, table, after, sharing)
            else:
                tally = score(lm.algorithm, text, reading, table, after, sharing)
            rows[method] = _row(tally, reading)
    if not team.is_first:
        return {}
    result, console = {"corpus": data.corpus.describe(), "methods": rows}, Console()
    path = run.write_json("golf_eval.json", run.about("golf_eval", lm) | {"golf_eval": result})
    _print(console, rows)
    console.print(f"written to {path}", soft_wrap=True)
    return result


def _text(data: TextDataModule, max_tokens: int | None) -> Tensor:
    """The ids of the held-out documents, one after the other, (N + 1,) for N targets; N is at most max_tokens if given."""
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"golf_eval.max_tokens must be at least 1, or null for all, not {max_tokens}")
    stream = data.cache.tokens("valid")
    stop = len(stream) if max_tokens is None else min(len(stream), max_tokens + 1)
    return torch.from_numpy(stream.read(0, stop))


def _row(tally: ByteTally, reading: Reading) -> dict[str, Any]:
    return {
        "window": reading.window,
        "stride": reading.stride,
        "chunk_tokens": reading.chunk,
        "chunks": reading.num_chunks(tally.num_tokens),
        "tokens": tally.num_tokens,
        "bytes": tally.num_bytes,
        "nats_per_token": tally.nats_per_token,
        "bits_per_byte": tally.bits_per_byte,
    }


def _print(console: Console, rows: dict[str, dict[str, Any]]) -> None:
    window = next(iter(rows.values()))["window"]
    table = Table(title=f"held-out text from left to right, {window} tokens at once", box=SIMPLE, pad_edge=False)
    table.add_column("scored in", min_width=len(TRAINED))
    for heading in ("stride", "tokens", "bytes", "nats/token", "bits/byte"):
        table.add_column(heading, justify="right")
    for method, row in rows.items():
        counts = [f"{row[key]:,}" for key in ("stride", "tokens", "bytes")]
        table.add_row(method, *counts, f"{row['nats_per_token']:.4f}", f"{row['bits_per_byte']:.4f}")
    console.print(table)
