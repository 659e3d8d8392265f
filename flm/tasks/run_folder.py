"""The folder of a training run: who works in it, and whether it may go on under a config.

`run.json` says what was asked, `.lock` is held by the process that trains.
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
# What makes a run another one. A value below one of these that is not named under HARMLESS or SAID must stay as it is.
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
    """Of all that train together: the one that writes files."""
    node = os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or "0"
    return rank_zero_only.rank == 0 and node == "0"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other run works in the folder; the lock is released when the process ends, however it does.

    Raises:
        ValueError: another one does, in one line that says where.
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
    except (OSError, ValueError, KeyError, TypeError):  # it has the lock and has not said yet
        return ""


def check_same_run(
    recorded: Mapping[str, Any], given: Mapping[str, Any], allowed: Sequence[str], name: str
) -> list[tuple[str, Any, Any]]:
    """What differs and may: (key, value of the record, value given).

    Args:
        recorded: the plain config of the run that is to go on; a key that it lacks is of a later version, and no difference.
        given: the one it is to go on under.
        allowed: keys whose difference the user accepts, or groups of keys.
        name: of the record.

    Raises:
        ValueError: something differs that makes it another run.
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
                said.append((key, old, new))  # the recipe's, shortened for a run that was a first try
            elif (old, new) != follows:  # else it is ${trainer.max_steps}, which is said itself
                refused.append(f"{key}={shown(new)} ({shown(old)} there)")
    if refused:
        keys = ",".join(text.partition("=")[0] for text in refused)
        raise ValueError(
            f"{name}: of a run with another config: {', '.join(refused)}; take these back, name another hydra.run.dir, or "
            f"accept the change with checkpointing.allow_changes=[{keys}]"
        )
    return said


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of all that both have, or the old one alone, and that differs."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in old:
            yield from differences(old[name], new.get(name, ABSENT), f"{key}.{name}" if key else str(name))
    elif _today(old) != _today(new) and not (old is None and new is ABSENT):
        yield key, old, new


def _today(value: Any) -> Any:
    """A class that has moved, by its present path."""
    return current(value) if isinstance(value, str) else value


def _within(key: str, groups: Sequence[str]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def shown(value: Any) -> str:
    text = "absent" if value is ABSENT else "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Record(Callback):
    """Writes run.json once all checks have passed: a start that is refused changes nothing.

    Args:
        content: of run.json.
    """

    def __init__(self, folder: Path, content: Mapping[str, Any]):
        self.folder, self.content = folder, dict(content)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            write_json(self.folder / RECORD, self.content)
