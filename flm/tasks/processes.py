"""Several processes of one evaluation, started by torchrun, one for each device: all run networks, the first does the rest."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from rich.console import Console
from torch import Tensor
from torch.distributed import ProcessGroup

PATIENCE = timedelta(days=7)  # the others wait while the first one scores, which may take hours

_WIDTH = 120  # columns of output that does not go to a terminal


def terminal(quiet: bool = False) -> Console:
    """The console for results, 120 columns wide if it is not a terminal."""
    console = Console(quiet=quiet)
    return console if console.is_terminal else Console(width=_WIDTH, quiet=quiet)


@dataclass(frozen=True)
class Team:
    """This process among all of them.

    Attributes:
        rank: in [0, size).
        group: of all processes; None if there is only one.
    """

    rank: int = 0
    size: int = 1
    group: ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> range:
        """This process's share of `count` pieces of work."""
        return range(self.rank, count, self.size)

    def all_of(self, mine: Sequence[Any]) -> list[Any]:
        """The results of all pieces of work in order, in every process, given those of this process's share."""
        if self.group is None:
            return list(mine)
        parts: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(parts, list(mine), group=self.group)
        whole: list[Any] = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            whole[rank :: self.size] = part
        return whole

    def from_first(self, value: Any) -> Any:
        """The value of the first process, in all of them. It is pickled, so tensors in it should be on the CPU."""
        return self.all_of([value])[0]

    def add_up(self, *tensors: Tensor) -> None:
        """Sums CPU tensors over all processes, in place. Only the first process may read them afterwards."""
        if self.group is not None:
            for tensor in tensors:
                torch.distributed.reduce(tensor, 0, group=self.group)


ALONE = Team()


def check_alone(mode: str) -> None:
    """For modes that run in one process.

    Raises:
        ValueError: torchrun started several, which would all write the same files.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size > 1:
        raise ValueError(f"mode={mode} runs in one process, not {size}: start it without torchrun")


@contextmanager
def team_of(device: torch.device) -> Iterator[Team]:
    """The team that torchrun's variables describe (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), or one alone.

    Args:
        device: of each process; on CUDA, process i of a machine takes device i.

    Raises:
        ValueError: there are more processes than CUDA devices.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield Team()
        return
    if device.type == "cuda":
        local, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= devices:
            raise ValueError(f"process {local + 1} of this machine has no CUDA device, there are {devices}: start fewer")
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("gloo")  # exchanged tensors are on the CPU
    try:
        yield Team(torch.distributed.get_rank(), size, torch.distributed.new_group(timeout=PATIENCE))
    finally:
        torch.distributed.destroy_process_group()
