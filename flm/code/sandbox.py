"""Running generated code without trusting it: a verdict on each program, and nothing left behind.

Every sample gets two processes. The *candidate* holds the generated program. The *judge* holds the test, the helpers that the
test takes from the reference solution, and a nonce; it asks the candidate for values over two pipes and compares them itself.
So nothing the program does in its own process (walking frames, patching builtins, tracing, exiting early, printing) reaches
the test, and an object that claims to equal everything arrives as one that equals nothing.

Both processes are confined before the program is read (`cell/confine.py`): a list of allowed system calls that holds no
process, thread, signal, socket or writing of files; no capability; limits on CPU, address space and open files; the user
nobody where this runs as root, and where Landlock is available only the standard library readable. Both begin in a fresh
empty folder with an empty environment, and are killed when the judge has spoken or the time is over. As root without a Python
that nobody can read, they stay user 0 without a capability, and Landlock is a must. Linux on x86-64 or ARM64 only.
"""

import contextlib
import json
import logging
import os
import secrets
import select
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flm.code.cell import landlock, seccomp

CELL = Path(__file__).with_name("cell")
_VERDICT_BYTES = 4096

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Program:
    """What is tested, and by what.

    Attributes:
        source: the generated program, never trusted.
        test: the benchmark's code, which raises unless the program is right.
        remote: names in the test that mean the program's functions and classes.
        reference: a trusted program whose other names the test may use.
    """

    source: str
    test: str
    remote: tuple[str, ...]
    reference: str = ""


@dataclass(frozen=True)
class Verdict:
    """
    Attributes:
        stage: passed; failed (the test raised); raised (the program did, while it was loaded); syntax (it does not compile);
            died (its process ended, at a limit or by itself); timeout; broken (the test or reference itself does not run).
        detail: a few words, written by whoever failed: do not trust them.
    """

    stage: str
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.stage == "passed"

    @property
    def compiled(self) -> bool:
        return self.stage not in ("syntax", "broken")


@dataclass(frozen=True)
class Limits:
    """Of each process. CPU seconds decide on any machine, however busy; wall-clock seconds end what only waits."""

    cpu_seconds: int = 3
    wall_seconds: float = 30.0
    memory_mb: int = 1024

    def __post_init__(self) -> None:
        if not (self.cpu_seconds >= 1 and self.wall_seconds > 0 and self.memory_mb >= 128):
            raise ValueError(f"code_eval.limits: at least 1 CPU second and 128 MB are needed, not {self}")


class Sandbox:
    """Runs programs; construction checks that this machine can hold them.

    Raises:
        ValueError: it cannot, and why.
    """

    def __init__(self, limits: Limits | None = None):
        self.limits = Limits() if limits is None else limits
        if not seccomp.supported():
            raise ValueError("code_eval: generated code is only run on Linux on x86_64 or aarch64, where it can be confined")
        has_landlock = landlock.version(CDLL(None, use_errno=True)) > 0
        root, reachable = os.geteuid() == 0, _reachable_by_all(sysconfig.get_path("stdlib"))
        if root and not reachable and not has_landlock:
            raise ValueError(
                f"code_eval: as root, generated code runs as the user nobody, who cannot read {sysconfig.get_path('stdlib')}: "
                "use a Python that everybody can read, or run as another user"
            )
        if not has_landlock:
            log.warning("no Landlock here: generated code can read files that its user can (it cannot write or send them)")
            CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: but not this process's memory and environment
        self._confine = {
            "memory_bytes": self.limits.memory_mb << 20,
            "cpu_seconds": self.limits.cpu_seconds,
            "drop_user": root and reachable,
            "use_landlock": has_landlock,
        }
        works = self.run(Program("def f(x):\n    return x + 1\n", "assert f(1) == 2", ("f",)))
        if not works.passed:
            raise ValueError(f"code_eval: this machine cannot hold generated code safely ({works.stage}: {works.detail})")

    def describe(self) -> dict[str, Any]:
        """For result files."""
        shown = {key: self._confine[key] for key in ("drop_user", "use_landlock")}
        return {**vars(self.limits), **shown, "seccomp": True}

    def run_all(self, programs: Sequence[Program], workers: int = 1) -> list[Verdict]:
        """Verdicts in the order of the programs, `workers` of them at a time."""
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(self.run, programs))

    def run(self, program: Program) -> Verdict:
        nonce = secrets.token_hex(16)
        task = {"nonce": nonce, "test": program.test, "remote": program.remote, "reference": program.reference}
        (asked, ask), (answered, answer), (heard, say) = os.pipe(), os.pipe(), os.pipe()
        open_here = {asked, ask, answered, answer, heard, say}
        children: list[subprocess.Popen[bytes]] = []
        said, cpu_seconds = None, 0.0
        try:
            with tempfile.TemporaryDirectory(prefix="flm-code-") as folder:
                os.chmod(folder, 0o555)
                try:
                    children.append(self._start("judge", folder, (ask, answered, say)))
                    children.append(self._start("candidate", folder, (asked, answer)))
                    for descriptor in open_here - {heard}:  # the children's alone: an end of file is the end of a child
                        os.close(descriptor)
                        open_here.remove(descriptor)
                    deadline = time.monotonic() + self.limits.wall_seconds
                    self._tell(children[0], task)
                    self._tell(children[1], {"source": program.source})
                    said = _read_until(heard, deadline)
                finally:
                    for child in children:
                        cpu_seconds = _kill(child)
        finally:
            for descriptor in open_here:
                os.close(descriptor)
        found = _verdict(said, nonce)
        # the kernel's end of a program that computes for too long looks to the judge like any other death
        return Verdict("timeout", "CPU") if found.stage == "died" and cpu_seconds > 0.9 * self.limits.cpu_seconds else found

    def _start(self, role: str, folder: str, descriptors: tuple[int, ...]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(CELL), role, *map(str, descriptors)]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # what a program prints is no part of a verdict: without end, it costs its CPU time
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            pass_fds=descriptors,
            start_new_session=True,
        )

    def _tell(self, child: subprocess.Popen[bytes], task: dict[str, Any]) -> None:
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: the verdict will say so
            child.stdin.write(json.dumps({**task, "confine": self._confine}).encode())
            child.stdin.close()


def _read_until(descriptor: int, deadline: float) -> bytes | None:
    """Everything up to the end of the file; None if that does not come in time."""
    said = b""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        if not poll.poll(1000 * left):
            return None
        part = os.read(descriptor, _VERDICT_BYTES)
        if not part or len(said) > _VERDICT_BYTES:
            return said
        said += part
    return None


def _verdict(said: bytes | None, nonce: str) -> Verdict:
    if said is None:
        return Verdict("timeout", "wall clock")
    try:
        found = json.loads(said)
        right = secrets.compare_digest(str(found["nonce"]).encode(), nonce.encode())
        stage, detail = str(found["stage"]), str(found["detail"])
    except (ValueError, KeyError, TypeError):
        return Verdict("died", "the judge said nothing")
    if not right:
        return Verdict("died", "a verdict without the nonce")
    return Verdict(stage, detail)


def _kill(child: subprocess.Popen[bytes]) -> float:
    """Ends the process and its group (it has no other descendants, since it can start none); the CPU seconds it took."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.stdin is not None and not child.stdin.closed:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
    return usage.ru_utime + usage.ru_stime


def _reachable_by_all(path: str) -> bool:
    """Whether every user may read a folder and pass through all those above it."""
    place = Path(path).resolve()
    return bool(place.stat().st_mode & stat.S_IROTH) and all(
        parent.stat().st_mode & stat.S_IXOTH for parent in (place, *place.parents)
    )
