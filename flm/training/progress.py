"""Output of a run in the terminal: a bar of optimiser steps, the validation table, and the batch that caused an error."""

import hashlib
import sys
import time
from itertools import islice
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from flm.algos.algorithm import Batch
from flm.training.validation import Report, bucket_name


class StepProgressBar(TQDMProgressBar):
    """Lightning's bar, counting optimiser steps up to trainer.max_steps, so that the time left is that of the run.

    If standard output is not a terminal, a line at most every `LINE_SECONDS` replaces it.
    """

    LINE_SECONDS = 30.0

    @property
    def is_line_by_line(self) -> bool:
        return not getattr(sys.stdout, "isatty", lambda: True)()

    def init_train_tqdm(self) -> Tqdm:
        return Tqdm(disable=True) if self.is_line_by_line else super().init_train_tqdm()

    def init_validation_tqdm(self) -> Tqdm:
        return Tqdm(disable=True) if self.is_line_by_line else super().init_validation_tqdm()

    def on_train_start(self, trainer: Trainer, *rest: Any) -> None:
        super().on_train_start(trainer, *rest)
        self._began = self._said = time.monotonic()

    def _say(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now, step, last = time.monotonic(), trainer.global_step, trainer.max_steps
        done = step - self.train_progress_bar.initial
        if now - self._said < self.LINE_SECONDS and step != last or not done:
            return
        self._said = now
        left = "" if last < 0 else f", {(last - step) * (now - self._began) / done:.0f} s left"
        metrics = "".join(f", {name} {value}" for name, value in self.get_metrics(trainer, pl_module).items())
        print(f"step {step}{f' of {last}' if last > 0 else ''}{metrics}{left}", flush=True)

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        if not self.is_disabled and self._train_progress_bar is not None:
            self.train_progress_bar.close()  # ends its line before the error is printed

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        bar = self.train_progress_bar
        bar.reset(total=trainer.max_steps if trainer.max_steps > 0 else None)
        bar.initial = bar.n = trainer.global_step  # steps before a resume do not count for the speed
        bar.set_description("Training")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        bar, step = self.train_progress_bar, trainer.global_step
        if step == bar.n:
            return
        if bar.disable:
            bar.n = step
            if self.is_line_by_line and not self.is_disabled:
                self._say(trainer, pl_module)
        elif self._should_update(step, bar.total):
            bar.n = step
            bar.set_postfix(self.get_metrics(trainer, pl_module))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        loss = super().get_metrics(trainer, pl_module).get("train/loss_nats_per_token")
        found = {"nats/token": loss, "tokens/s": _attribute(trainer, "tokens_per_second")}
        return {name: f"{value:.4g}" for name, value in found.items() if value is not None}


def _attribute(trainer: Trainer, name: str) -> Any:
    """The attribute of the first callback that has it; None if none has."""
    return next((found for one in trainer.callbacks if (found := getattr(one, name, None)) is not None), None)


def writes_now(trainer: Trainer) -> bool:
    """Whether Lightning passes numbers that are logged at the end of this batch to a logger.

    At other times it would still make a tensor on the device of each number, for which the CPU waits, and discard it.
    """
    return trainer._logger_connector.should_update_logs and not trainer.fit_loop._should_accumulate()


class PrintCrossEntropy(Callback):
    """Prints the last validation, beside a decoder without context, when training or a validation run ends."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._print(trainer, pl_module)

    def _print(self, trainer: Trainer, pl_module: LightningModule) -> None:
        report = getattr(pl_module, "report", None)
        if report is not None and trainer.is_global_zero:
            print_report(report, pl_module.algorithm.validation_says)


def print_report(report: Report, says: str) -> None:
    """Prints a validation report.

    Args:
        says: `Algorithm.validation_says`.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not report.has_clock:
        console.print(f"validation: {report.measure}_per_token {report.mean:.4f}")
        return
    console.print(f"validation: {report.measure}_per_token by place on the clock ({says})", soft_wrap=True)
    table = Table()
    for heading in ("tau", "model", "without context"):
        table.add_column(heading, justify="right")
    for index, value in enumerate(report.by_tau):
        reference = None if report.context_free is None else report.context_free[index]
        table.add_row(bucket_name(index), _number(value), _number(reference))
    table.add_section()
    table.add_row("mean", _number(report.mean), _number(report.context_free_mean))
    console.print(table)
    if report.learned_nothing:
        console.print("nothing learned from context yet: the model is nowhere below the decoder without it", soft_wrap=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


SHOWN = 8  # example numbers


def fingerprint(batch: Batch, batch_idx: int, trainer: Trainer) -> str:
    """Identifies a batch in an error: the process, the SHA-256 of its tokens, and its examples if the loader knows them.

    Args:
        batch_idx: number of micro-batches of this fit before it.
    """
    digest = hashlib.sha256(batch.tokens.cpu().numpy().tobytes()).hexdigest()[:12]
    text = f"process {trainer.global_rank}, batch sha256 {digest}"
    sampler = getattr(trainer.train_dataloader, "batch_sampler", None)
    if sampler is None:
        return text
    examples = next(islice(sampler, batch_idx, None), [])
    more = f" and {len(examples) - SHOWN} more" if len(examples) > SHOWN else ""
    return f"{text}, examples {', '.join(map(str, examples[:SHOWN]))}{more}"
