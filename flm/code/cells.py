"""Confined processes from the outside: started by a forker, watched while they live, and nothing left behind."""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flm.code.cell.report import task_file

CELL = Path(__file__).with_name("cell")
NOBODY_GROUP = 65534
_LOOK_EVERY = 0.05  # seconds
_MAX_THREADS = 1024
_MAX_FILES = 4096
_MAX_DEPTH = 64


@dataclass(frozen=True)
class Cell:
    """One process: what it is (a role of `cell/__main__.py`), its task, and its pipes, as places among those of a run."""

    role: str
    task: dict[str, Any]
    pipes: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """
    Attributes:
        said: what came out of the pipe that is listened to; None: not in time, or ended for `excess`.
        excess: what it took too much of; empty: nothing.
        cpu_seconds: of each cell.
    """

    said: bytes | None
    excess: str
    cpu_seconds: list[float]


class Forker:
    """A Python that forks cells; one run at a time. To be closed."""

    def __init__(self, packages: Sequence[str]):
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-s", "-P", "-S", "-B", "-X", "utf8", str(CELL), str(there.fileno()), *packages],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # what a program prints is no part of a verdict: without end, it costs its CPU time
                stderr=subprocess.DEVNULL,
                cwd="/",
                # sets of strings come in the same order every time; threads of numpy would not outlive a fork
                env={"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=(there.fileno(),),
                start_new_session=True,
            )
        self._channel = here

    def close(self) -> None:
        self._channel.close()
        self._process.wait()

    def run(
        self, cells: Sequence[Cell], confine: dict[str, Any], nonce: str, wall_seconds: float, numpy: bool, max_bytes: int
    ) -> Outcome:
        """Cells side by side, until all that is said on pipe 0 has been heard.

        Raises:
            RuntimeError: the forker is gone.
        """
        deadline = time.monotonic() + wall_seconds
        pipes = 1 + max(place // 2 for cell in cells for place in cell.pipes)
        ends = [end for _ in range(pipes) for end in os.pipe()]
        handed = [task_file(cell.task, nonce) for cell in cells] + ends[1:]
        try:
            with contextlib.ExitStack() as stack:
                folders = [stack.enter_context(_folder(confine)) for _ in cells]
                order = {
                    "numpy": numpy,
                    "cells": [
                        {"role": cell.role, "folder": folder, "confine": confine,
                         "descriptors": [index, *(len(cells) - 1 + place for place in cell.pipes)]}
                        for index, (cell, folder) in enumerate(zip(cells, folders, strict=True))
                    ],
                }  # fmt: skip
                socket.send_fds(self._channel, [json.dumps(order).encode()], handed)
                children = json.loads(self._channel.recv(4096))
                while handed:  # the cells' alone: an end of file is the end of a cell
                    os.close(handed.pop())
                said, excess = _listen(ends[0], deadline, max_bytes, children, folders, confine["disk_bytes"])
                self._channel.send(b".")
                return Outcome(said, excess, json.loads(self._channel.recv(4096)))
        except (OSError, ValueError) as error:
            raise RuntimeError(f"code_eval: the process that starts programs has ended ({error})") from error
        finally:
            for descriptor in (*handed, ends[0]):
                os.close(descriptor)


def _listen(
    descriptor: int, deadline: float, max_bytes: int, children: list[int], folders: list[str], disk_bytes: int
) -> tuple[bytes | None, str]:
    """Everything up to the end of the file, or None and what there was too much of."""
    said = b""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        if poll.poll(1000 * min(left, _LOOK_EVERY)):
            part = os.read(descriptor, 1 << 16)
            if not part or len(said) > max_bytes:
                return said, ""
            said += part
        elif excess := _excess(children, folders, disk_bytes):
            return None, excess
    return None, ""


@contextlib.contextmanager
def _folder(confine: dict[str, Any]) -> Iterator[str]:
    """An empty folder for one cell. Its user can change what is in it, but as nobody not the folder itself."""
    folder = tempfile.mkdtemp(prefix="flm-code-")
    try:
        if not confine["disk_bytes"]:
            os.chmod(folder, 0o555)
        elif confine["user"] != "same":
            os.chown(folder, -1, NOBODY_GROUP)
            os.chmod(folder, 0o770)
        yield folder
    finally:
        _remove(folder)


def _excess(children: list[int], folders: list[str], disk_bytes: int) -> str:
    """What cells have too much of, beyond what the kernel bounds itself."""
    for child in children:
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has just ended, or /proc shows no other processes
            status = Path(f"/proc/{child}/status").read_text()
            if int(status.partition("Threads:")[2].split()[0]) > _MAX_THREADS:
                return f"more than {_MAX_THREADS} threads"
    for folder in folders:
        count, size = 0, 0
        pending = [(folder, 0)]
        while pending:
            path, depth = pending.pop()
            with contextlib.suppress(OSError), os.scandir(path) as entries:  # removed meanwhile
                for entry in entries:
                    count += 1
                    size += 512 * entry.stat(follow_symlinks=False).st_blocks
                    if entry.is_dir(follow_symlinks=False):
                        pending.append((entry.path, depth + 1))
                    if count > _MAX_FILES or depth > _MAX_DEPTH:
                        return f"more than {_MAX_FILES} files, or folders more than {_MAX_DEPTH} deep"
        if size > disk_bytes:
            return f"more than {disk_bytes >> 20} MB of files"
    return ""


def _remove(folder: str) -> None:
    """A tree of any depth, with any permissions: what lies in a folder of it is moved up before that folder goes."""
    os.chmod(folder, 0o700)
    moved = 0
    while inner := _remove_files(folder):
        for path in inner:
            os.chmod(path, 0o700)
            for deeper in _remove_files(path):
                moved += 1
                os.chmod(deeper, 0o700)
                os.rename(deeper, os.path.join(folder, f"{moved}-moved"))
            os.rmdir(path)
    os.rmdir(folder)


def _remove_files(folder: str) -> list[str]:
    """Removes what is no folder; paths of the folders."""
    with os.scandir(folder) as entries:
        found = list(entries)
    inner = []
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            inner.append(entry.path)
        else:
            os.unlink(entry.path)
    return inner
