"""The folder of a training run: a lock, and the check whether the run may continue with a changed config.

`run.json` records the config; the process that trains holds `.lock`.
"""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from flm.atomic import write_json
from flm.checkpoints.moved import current
from flm.handed_in import read_json
from flm.training.schedules import warm_up

LOCK, OWNER, RECORD = ".lock", ".owner.json", "run.json"
# Values below these keys identify a run. A change of one makes it another run, unless it is in HARMLESS, which is ignored, or
# SAID, which is reported.
IDENTITY = (
    "algo",
    "model",
    "data",
    "tokenizer",
    "seed",
    "lr_scheduler",
    "loader.global_batch_size",
    "training.ema",
    "trainer.gradient_clip_val",
)
HARMLESS = ("data.cache_dir", "model.compile")
SAID = ("trainer.max_steps", "trainer.precision", "training.max_loss_rise", "optim")
ABSENT = object()


def is_first_process() -> bool:
    """Whether this is the process, of all that train together, that writes files."""
    node = os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or "0"
    return rank_zero_only.rank == 0 and node == "0"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside the block, no other run works in the folder. The lock is released even if the process is killed.

    Raises:
        ValueError: another run works in it; names its host and process.
    """
    if not is_first_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"{folder}: a run is going on in it{_owner(folder)}: stop that one, or name another hydra.run.dir"
        ) from error
    except NotImplementedError:
        print(f"warning: the file system of {folder} has no locks: see to it that no second run works in it", flush=True)
        yield
        return
    try:
        write_json(folder / OWNER, {"host": socket.gethostname(), "process": os.getpid()})
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def _owner(folder: Path) -> str:
    try:
        found = read_json(folder / OWNER)
        return f" on {found['host']} as process {found['process']}"
    except (OSError, ValueError, KeyError, TypeError):  # it holds the lock, but has not written this file yet
        return ""


def check_same_run(
    recorded: Mapping[str, Any], given: Mapping[str, Any], allowed: Sequence[str], name: str
) -> list[tuple[str, Any, Any]]:
    """The allowed differences to report: (key, recorded value, given value).

    Args:
        recorded: the plain config of the run to continue. A key that it lacks comes from a later version and is no difference.
        given: the plain config to continue with.
        allowed: keys or groups of keys whose difference the user accepts.
        name: of the record, for errors.

    Raises:
        ValueError: a difference makes it another run.
    """
    refused, said = [], []
    for key, old, new in differences(recorded, given):
        if _within(key, HARMLESS):
            continue
        if _within(key, SAID) or _within(key, allowed):
            said.append((key, old, new))
        elif _within(key, IDENTITY):
            follows = (recorded.get("trainer") or {}).get("max_steps"), (given.get("trainer") or {}).get("max_steps")
            if key == "lr_scheduler.warmup_steps" and old == warm_up(new, follows[0]):
                said.append((key, old, new))  # the warm-up of the recipe, shortened for a short first run
            elif (old, new) != follows:  # else the value is ${trainer.max_steps}, which is reported itself
                refused.append(f"{key}={shown(new)} ({shown(old)} there)")
    if refused:
        keys = ",".join(text.partition("=")[0] for text in refused)
        raise ValueError(
            f"{name}: of a run with another config: {', '.join(refused)}; take these back, name another hydra.run.dir, or "
            f"accept the change with checkpointing.allow_changes=[{keys}]"
        )
    return said


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of every value that differs, or that only `old` has."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in old:
            yield from differences(old[name], new.get(name, ABSENT), f"{key}.{name}" if key else str(name))
    elif _today(old) != _today(new) and not (old is None and new is ABSENT):
        yield key, old, new


def _today(value: Any) -> Any:
    """The value, or the present path of a class that has moved."""
    return current(value) if isinstance(value, str) else value


def _within(key: str, groups: Sequence[str]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def shown(value: Any) -> str:
    text = "absent" if value is ABSENT else "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Record(Callback):
    """Writes run.json after all checks have passed, so that a refused start changes nothing.

    Args:
        content: of run.json.
    """

    def __init__(self, folder: Path, content: Mapping[str, Any]):
        self.folder, self.content = folder, dict(content)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            write_json(self.folder / RECORD, self.content)
