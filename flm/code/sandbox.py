"""Running generated code without trusting it: a verdict on each program, and nothing left behind.

The verdict is the one of the benchmark's own harness: program and test run one after the other in one process, with the whole
standard library and numpy. There a program can get at the test: patch what it calls, walk to it, write the verdict itself.
So what passes runs a second time, apart: the *candidate* holds the program, the *judge* holds the test and the helpers that
the test takes from the reference solution, and asks the candidate for values over two pipes. Nothing the program does in its
own process reaches that test, and an object that claims to equal everything arrives as one that equals nothing. What passes
together and not apart is *suspicious*: a cheat, or a right program whose values do not cross (see docs/conditional.md).

All processes are confined before the program is read (`cell/confine.py`): a list of allowed system calls that holds no process,
signal to others or socket to anywhere; no capability that changes anything; limits on CPU, address space, files and threads;
the user nobody where this runs as root. Where Landlock is available only the standard library and numpy are readable, and a
folder that is empty at the start and gone at the end is writable; elsewhere nothing is. Linux on x86-64 or ARM64 only.
"""

import json
import logging
import os
import queue
import secrets
import stat
import sysconfig
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from flm.code.cell import landlock, seccomp, values
from flm.code.cells import Cell, Forker, Outcome

_VERDICT_BYTES = 1 << 14
_ANSWER_BYTES = 1 << 20
_READING = 1 << 2  # CAP_DAC_READ_SEARCH

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
            died (its process ended, at a limit or by itself); timeout; broken (the test itself does not compile).
        detail: a few words, written by whoever failed: do not trust them.
        suspicious: passed, but not when the test ran where the program could not reach it.
    """

    stage: str
    detail: str = ""
    suspicious: bool = False

    @property
    def passed(self) -> bool:
        return self.stage == "passed"

    @property
    def compiled(self) -> bool:
        return self.stage not in ("syntax", "broken")


@dataclass(frozen=True)
class Answer:
    """
    Attributes:
        stage: answered; failed (the expression raised, or its value is no plain data); else as in `Verdict`.
        value: of the expression: numbers, text, containers of these; None where there is none.
        printed: what the program wrote to its standard output, at most 16384 characters.
        detail: a few words, not to be trusted.
    """

    stage: str
    value: Any = None
    printed: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Limits:
    """Of each process. CPU seconds decide on any machine, however busy; wall-clock seconds end what only waits.

    `disk_mb` is what a process may hold in files of its own folder.
    """

    cpu_seconds: int = 3
    wall_seconds: float = 30.0
    memory_mb: int = 1024
    disk_mb: int = 16

    def __post_init__(self) -> None:
        if not (self.cpu_seconds >= 1 and self.wall_seconds > 0 and self.memory_mb >= 128 and self.disk_mb >= 1):
            raise ValueError(f"code_eval.limits: at least 1 CPU second, 128 MB of memory and 1 MB of disk, not {self}")


Task = TypeVar("Task")
Result = TypeVar("Result")


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
        user = _user(has_landlock)
        if not has_landlock:
            log.warning("no Landlock here: generated code can read files that its user can, and has no folder to write in")
            CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: but not this process's memory and environment
        found = find_spec("numpy")
        numpy = Path(found.origin).parent if found is not None and found.origin else None
        self._packages = [] if numpy is None else [str(numpy.parent)]
        self._idle: queue.SimpleQueue[Forker] = queue.SimpleQueue()
        weakref.finalize(self, _close_all, self._idle)
        self._confine = {
            "memory_bytes": self.limits.memory_mb << 20,
            "disk_bytes": self.limits.disk_mb << 20 if has_landlock else 0,
            "cpu_seconds": self.limits.cpu_seconds,
            "user": user,
            "use_landlock": has_landlock,
            "readable": [] if numpy is None else [str(numpy), str(numpy.with_name("numpy.libs"))],
        }
        works = self.run(Program("def f(x):\n    return x + 1\n", "assert f(1) == 2", ("f",)))
        if not works.passed or works.suspicious:
            raise ValueError(f"code_eval: this machine cannot hold generated code safely ({works.stage}: {works.detail})")

    def describe(self) -> dict[str, Any]:
        """For result files."""
        shown = {key: self._confine[key] for key in ("user", "use_landlock")}
        return {**vars(self.limits), **shown, "seccomp": True}

    def run_all(self, programs: Sequence[Program], workers: int = 1) -> list[Verdict]:
        """Verdicts in the order of the programs, `workers` of them at a time; the same program is run once."""
        distinct = list(dict.fromkeys(programs))
        verdicts = dict(zip(distinct, self._side_by_side(self._judged, distinct, workers), strict=True))
        return [verdicts[program] for program in programs]

    def run(self, program: Program) -> Verdict:
        return self.run_all([program])[0]

    def answers(self, questions: Sequence[tuple[str, str | None]], workers: int = 1) -> list[Answer]:
        """What programs answer: for each source and expression, the expression's value after the source has run.

        The value is the program's own word, to be compared with what is known. With None for an expression only what is printed
        counts. For programs that compute a number, as in TinyGSM: `answers([(source, "simple_math_problem()")])`.
        """
        return self._side_by_side(self._answered, questions, workers)

    def _side_by_side(self, do: Callable[[Forker, Task], Result], tasks: Sequence[Task], workers: int) -> list[Result]:
        with ThreadPoolExecutor(max(1, workers)) as pool:
            results = list(pool.map(lambda task: self._with_forker(do, task), tasks))
        while self._idle.qsize() > 1:  # one is kept for the next call
            self._idle.get().close()
        return results

    def _with_forker(self, do: Callable[[Forker, Task], Result], task: Task) -> Result:
        try:
            forker = self._idle.get_nowait()
        except queue.Empty:
            forker = Forker(self._packages)
        try:
            result = do(forker, task)
        except BaseException:
            forker.close()
            raise
        self._idle.put(forker)
        return result

    def _judged(self, forker: Forker, program: Program) -> Verdict:
        needs_numpy = "numpy" in program.source or "numpy" in program.test
        together = Cell("together", {"source": program.source, "test": program.test}, (1,))
        verdict, _ = self._heard(forker, [together], needs_numpy, _VERDICT_BYTES)
        if not verdict.passed:
            return verdict
        judge = Cell("judge", {"test": program.test, "remote": program.remote, "reference": program.reference}, (1, 3, 4))
        candidate = Cell("candidate", {"source": program.source, "remote": program.remote}, (2, 5))
        # what passes just within the time is not to be suspected for the calls between two processes
        apart, _ = self._heard(forker, [judge, candidate], needs_numpy, _VERDICT_BYTES, patience=2)
        return verdict if apart.passed else replace(verdict, suspicious=True, detail=f"apart {apart.stage}: {apart.detail}")

    def _answered(self, forker: Forker, question: tuple[str, str | None]) -> Answer:
        source, expression = question
        cell = Cell("answer", {"source": source, "expression": expression}, (1,))
        verdict, said = self._heard(forker, [cell], "numpy" in source, _ANSWER_BYTES)
        try:
            data, printed = said if isinstance(said, list) else (None, "")
            return Answer(verdict.stage, values.decode(data, values.nothing), str(printed), verdict.detail)
        except Exception as error:  # data of no program's making: by a forged message only
            return Answer("died", detail=f"no value ({type(error).__name__})")

    def _heard(self, forker: Forker, cells: list[Cell], numpy: bool, max_bytes: int, patience: int = 1) -> tuple[Verdict, Any]:
        nonce = secrets.token_hex(16)
        confine = self._confine | {"cpu_seconds": patience * self.limits.cpu_seconds}
        outcome = forker.run(cells, confine, nonce, patience * self.limits.wall_seconds, numpy, max_bytes)
        verdict, value = _verdict(outcome, nonce)
        # the kernel's end of a program that computes for too long looks like any other death
        if verdict.stage == "died" and max(outcome.cpu_seconds) > 0.9 * patience * self.limits.cpu_seconds:
            return Verdict("timeout", "CPU"), None
        return verdict, value


def _close_all(idle: "queue.SimpleQueue[Forker]") -> None:
    while not idle.empty():
        idle.get().close()


def _verdict(outcome: Outcome, nonce: str) -> tuple[Verdict, Any]:
    if outcome.excess:
        return Verdict("died", outcome.excess), None
    if outcome.said is None:
        return Verdict("timeout", "wall clock"), None
    try:
        found = json.loads(outcome.said)
        right = secrets.compare_digest(str(found["nonce"]).encode(), nonce.encode())
        verdict, value = Verdict(str(found["stage"]), str(found["detail"])), found["value"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Verdict("died", "it said nothing"), None
    return (verdict, value) if right else (Verdict("died", "a verdict without the nonce"), None)


def _user(has_landlock: bool) -> str:
    """Whom programs run as; see `confine`."""
    if os.geteuid() != 0:
        return "same"
    library = sysconfig.get_path("stdlib")
    if _reachable_by_all(library):
        return "nobody"
    if not has_landlock:
        raise ValueError(
            f"code_eval: as root, generated code runs as the user nobody, who cannot read {library}: "
            "use a Python that everybody can read, or run as another user"
        )
    held = Path("/proc/self/status").read_text().partition("CapPrm:")[2].split()[0]
    return "nobody who reads" if int(held, 16) & _READING else "same"


def _reachable_by_all(path: str) -> bool:
    """Whether every user may read a folder and pass through all those above it."""
    place = Path(path).resolve()
    return bool(place.stat().st_mode & stat.S_IROTH) and all(
        parent.stat().st_mode & stat.S_IXOTH for parent in (place, *place.parents)
    )
