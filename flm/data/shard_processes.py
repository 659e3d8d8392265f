"""Shards written by several processes at once.

The processes are new programs, not forks, so they share neither threads nor memory with the caller. Each reads its orders
from a pipe that only the caller can write to. So they end when the caller does, however that ends.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from flm.data.shards import Advance, ShardWriter

Job = tuple[str, list[str]]  # name of the shard, its documents
Result = tuple[str, dict[str, Any], np.ndarray]  # name of the shard, what `ShardWriter` gives

_REPORT_TOKENS = 100_000  # tokens per progress message; with fewer, messages would keep the caller busy


def available_cores() -> int:
    """The number of cores that this process may use; of all cores, where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_shards(writer: ShardWriter, jobs: Iterable[Job], processes: int, enough: int, advance: Advance) -> Iterator[Result]:
    """Writes the shards of all jobs; yields results in any order. At most `processes` + 1 jobs are in memory at once.

    Args:
        processes: 1: everything happens in this process, with all the tokenizer's threads.
        enough: characters of the first job; with fewer, other processes are not worth their start.

    Raises:
        ValueError: the normaliser or the tokenizer raised it, or the normaliser cannot be pickled.
        ChildProcessError: a process was killed.
    """
    jobs = iter(jobs)
    first = next(jobs, None)
    if first is None:
        return
    jobs = chain((first,), jobs)
    if processes == 1 or sum(map(len, first[1])) < enough:
        for name, documents in jobs:
            yield (name, *writer(name, documents, advance))
        return
    del first
    workers: list[_Process] = []
    try:
        yield from _share_out(writer, jobs, processes, workers, advance)
    finally:
        for worker in workers:
            worker.end()


def _share_out(
    writer: ShardWriter, jobs: Iterator[Job], processes: int, workers: list["_Process"], advance: Advance
) -> Iterator[Result]:
    idle: list[_Process] = []
    for job in jobs:
        while not idle and len(workers) == processes:
            yield from _collect(workers, idle, advance)
        if not idle:
            workers.append(_Process(writer))
            idle.append(workers[-1])
        idle.pop().send(job)
        del job  # not held while the next one is read
    while len(idle) < len(workers):
        yield from _collect(workers, idle, advance)


def _collect(workers: list["_Process"], idle: list["_Process"], advance: Advance) -> Iterator[Result]:
    """Waits for messages and yields the results among them; processes that finished a shard become idle."""
    ready = wait([worker.answers for worker in workers])
    for worker in workers:
        if worker.answers in ready:
            kind, content = worker.receive()
            if kind == "advance":
                advance(content)
            elif kind == "failed":
                raise ValueError(content)
            else:
                idle.append(worker)
                yield content


class _Process:
    """The caller's side of a process that writes shards."""

    def __init__(self, writer: ShardWriter):
        try:
            order = pickle.dumps(writer)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"data.normaliser cannot be sent to another process ({error}): define it in a module, or set data.processes=1"
            ) from error
        orders_end, orders = os.pipe()
        answers, answers_end = os.pipe()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "TOKENIZERS_PARALLELISM": "false",  # the processes share the cores out already
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "flm.data.shard_processes", str(orders_end), str(answers_end)]
        self._process = subprocess.Popen(command, pass_fds=(orders_end, answers_end), stdin=subprocess.DEVNULL, env=environment)
        os.close(orders_end)
        os.close(answers_end)
        self._orders, self.answers = Connection(orders, readable=False), Connection(answers, writable=False)
        self._guarded(self._orders.send_bytes, order)

    def send(self, job: Job) -> None:
        self._guarded(self._orders.send, job)

    def receive(self) -> tuple[str, Any]:
        return self._guarded(self.answers.recv)

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._orders.close()
        self.answers.close()

    def _guarded(self, act: Any, *arguments: Any) -> Any:
        try:
            return act(*arguments)
        except (EOFError, OSError) as error:
            status = self._process.wait()
            raise ChildProcessError(
                f"a tokenising process ended with status {status} (killed for memory, perhaps: lower data.processes); "
                "run again, finished shards are kept"
            ) from error


def _serve(orders: Connection, answers: Connection) -> None:
    writer: ShardWriter = orders.recv()
    waiting = 0

    def advance(tokens: int) -> None:
        nonlocal waiting
        waiting += tokens
        if waiting >= _REPORT_TOKENS:
            answers.send(("advance", waiting))
            waiting = 0

    while True:
        name, documents = orders.recv()
        try:
            result = (name, *writer(name, documents, advance))
        except ValueError as error:
            answers.send(("failed", str(error)))
            continue
        answers.send(("advance", waiting))
        waiting = 0
        answers.send(("done", result))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller decides
    try:
        _serve(Connection(int(sys.argv[1]), writable=False), Connection(int(sys.argv[2]), readable=False))
    except (EOFError, BrokenPipeError):  # the caller is gone
        pass
