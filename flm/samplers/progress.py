"""A progress bar over all batches and steps of a generation, on standard error if that is a terminal or a notebook."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flm.samplers.flow import Moment, OnStep


@contextmanager
def progress_bar(is_shown: bool, batches: int, on_step: OnStep) -> Iterator[Callable[[int], OnStep]]:
    """Gives a function from the number of a batch to its `on_step`, which moves the bar and calls the `on_step` given here."""
    if not is_shown:
        yield lambda batch: on_step
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield lambda batch: on_step
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("generating", total=None)

        def of_batch(batch: int) -> OnStep:
            def both(moment: Moment) -> None:
                bar.update(task, completed=batch * moment.steps + moment.index + 1, total=batches * moment.steps)
                if on_step is not None:
                    on_step(moment)

            return both

        yield of_batch
