"""`python cell DESCRIPTOR`: forks confined processes on demand, so that none of them pays for the start of Python.

It comes to know nothing of programs and tests: what the cells read and say goes past it. So a cell finds nothing in its memory
that it has from here.
"""

import _multiprocessing
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import answer
import candidate
import confine
import judge
import report
import semaphore
import together

_ROLES: dict[str, Callable[..., None]] = {"together": together.run, "judge": judge.run, "answer": answer.run}


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    packages = sys.argv[2:]
    sys.argv[:] = ["program"]
    sys.path.pop(0)
    for module in (answer, candidate, confine, judge, report, semaphore, together, *map(sys.modules.get, _INNER)):
        del sys.modules[module.__name__]  # a program's own modules may bear these names
    _multiprocessing.SemLock = semaphore.SemLock  # type: ignore[misc]
    _as_after_site()
    gc.freeze()
    while True:
        raw, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 32)
        if not raw:
            return
        order = json.loads(raw)
        if order["numpy"] and "numpy" not in sys.modules:
            _load_numpy(packages)
        children = [_fork(cell, descriptors, channel) for cell in order["cells"]]
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(json.dumps(children).encode())
        channel.recv(1)  # it is over, or nobody is there any more
        channel.send(json.dumps([_end(child) for child in children]).encode())


_INNER = ("landlock", "peer", "remote", "seccomp", "values", "wire")


def _as_after_site() -> None:
    """What the module site adds to the built-in names, without its search for packages."""
    import site

    site.setquit()
    site.sethelper()


def _load_numpy(packages: list[str]) -> None:
    sys.path += packages
    try:
        import numpy  # noqa: F401
    except ImportError:
        pass  # the program will find that out
    finally:
        del sys.path[len(sys.path) - len(packages) :]


def _fork(cell: dict[str, Any], descriptors: list[int], channel: socket.socket) -> int:
    """The new process's number. A cell: its role, folder, places among the descriptors (task first), arguments of `confine`."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        channel.close()
        mine = [descriptors[place] for place in cell["descriptors"]]
        for descriptor in set(descriptors) - set(mine):
            os.close(descriptor)
        os.chdir(cell["folder"])
        os.environ.clear()
        confine.confine(**cell["confine"], folder=cell["folder"])
        _play(cell["role"], mine)
    finally:
        os._exit(0)


def _play(role: str, descriptors: list[int]) -> None:
    task = report.read_task(descriptors[0])
    if role == "candidate":
        candidate.run(task, *descriptors[1:])
    else:
        _ROLES[role](task, report.reporter(descriptors[0], descriptors[1]), *descriptors[2:])


def _end(child: int) -> float:
    """Kills it; CPU seconds that it took. It has no descendants, since it can start none."""
    try:
        os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    _, _, usage = os.wait4(child, 0)
    return usage.ru_utime + usage.ru_stime


main()
