"""FSDP2 with checkpoints that no process ever holds whole: each writes its own part, while training goes on.

Gathered in one file, a checkpoint of 7 billion parameters takes 112 GB of one process's main memory and all others wait for it.
Here a process copies its part to main memory, 16 bytes a parameter over the number of processes, and a thread writes that
(torch.distributed.checkpoint). The folder gets its name when all parts are on disk; until then it is a hidden one, which the
next checkpoint of that name replaces. All processes need one file system.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, Shard, empty

from flm import atomic
from flm.checkpoints import files
from flm.split_checkpoints.split_folder import REST, Mark, Parts, SplitFolder, joined, separated
from flm.training.sharding import FullyShardedStrategy


class SplitCheckpoints(FullyShardedStrategy):
    """A run goes on from such a folder on any number of processes, and from a file, too.

    Args:
        process_group_backend: null for nccl on CUDA, gloo on CPU.
    """

    def __init__(self, process_group_backend: str | None = None):
        super().__init__(process_group_backend)
        self._writers: dist.ProcessGroup | None = None
        self._pending: tuple[Path, Future[Any]] | None = None
        self._failed: OSError | None = None

    def setup_environment(self) -> None:
        super().setup_environment()
        # of their own: the training thread's collectives must not meet those of the threads that write
        self._writers = dist.new_group(backend="gloo")

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Returns once the parts are copied.

        Raises:
            OSError: on all processes: this checkpoint, or the one before, cannot be written.
        """
        self.finish_writing()
        path = Path(filepath)
        draft = path.with_name(f".{path.name}.partial")
        split: dict[str, DTensor] = {}
        rest = separated(checkpoint, split)
        problem = None
        if self.is_global_zero:
            try:
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir(parents=True)
                files.save(rest, draft / REST)
            except OSError as error:
                problem = str(error)
        problem = self.broadcast(problem)
        if problem is not None:
            raise OSError(problem)
        future = dcp.async_save(split, storage_writer=_Writer(draft, path), process_group=self._writers)
        assert isinstance(future, Future)
        self._pending = path, future

    def after_writing(self, then: Callable[[], object]) -> None:
        """Does something once the last checkpoint is whole; not if it never is."""
        assert self._pending is not None
        self._pending[1].add_done_callback(partial(self._follow, then))

    def _follow(self, then: Callable[[], object], future: Future[Any]) -> None:
        if future.exception() is None:
            try:
                then()
            except OSError as error:
                self._failed = error

    def finish_writing(self) -> None:
        """Waits until the last checkpoint is whole; OSError where it could not be written."""
        if self._pending is None:
            return
        (path, future), self._pending = self._pending, None
        try:
            future.result()
        except CheckpointException as error:  # the same on all processes
            first = next(iter(error.failures.values()))[0]
            raise OSError(f"{path} cannot be written ({getattr(first, 'strerror', None) or first})") from error
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def teardown(self) -> None:
        self.finish_writing()
        super().teardown()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Of a folder each process reads what it will hold."""
        path = Path(checkpoint_path)
        if not SplitFolder.matches(path):
            return super().load_checkpoint(path)
        parts, mesh = Parts(path), self.device_mesh["data_parallel"]
        split: dict[str, DTensor] = {}

        def own_part(mark: Mark) -> DTensor:
            made = empty(mark.shape, dtype=parts.dtype(mark), device_mesh=mesh, placements=[Shard(0)])
            return split.setdefault(mark.name, made)

        content = joined(files.load(path / REST), own_part)
        dcp.load(split, storage_reader=HuggingFaceStorageReader(str(path)), process_group=self._writers)
        return content


class _Writer(HuggingFaceStorageWriter):
    """Parts go to a draft of the folder, which gets its name when all of them are there."""

    def __init__(self, draft: Path, path: Path):
        super().__init__(str(draft), save_distributed=True)
        self._draft, self._path = draft, path

    def finish(self, metadata: Any, results: Any) -> None:
        super().finish(metadata, results)
        atomic.sync(self._draft)
        if self._path.is_dir():
            atomic.remove(self._path)
        os.replace(self._draft, self._path)
        atomic.sync(self._path.parent)
