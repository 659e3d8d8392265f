"""Giving up everything a computation does not need, before code of unknown origin runs in this process."""

import ctypes
import os
import resource
import sys
import sysconfig
import threading

import landlock
import seccomp

NOBODY = 65534
# Where extension modules find the libraries they are linked to, and Python its time zones, kinds of files and random bytes.
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/localtime",
           "/etc/mime.types", "/usr/share/zoneinfo", "/dev/urandom")  # fmt: skip
_LIBRARY = sysconfig.get_paths()
_PYTHON = (os.path.join(sys.base_exec_prefix, "lib"), os.path.realpath(sys.executable))
READABLE = (_LIBRARY["stdlib"], _LIBRARY["platstdlib"], *_PYTHON)
OPEN_FILES = 64
_THREAD_STACK = 1 << 21  # bytes; the usual 8 MB each would use the address space up
_READING = 1 << 2  # CAP_DAC_READ_SEARCH


def confine(
    memory_bytes: int, disk_bytes: int, cpu_seconds: int, user: str, use_landlock: bool, folder: str, readable: list[str]
) -> None:
    """Irrevocable for this process. OSError where a layer that was asked for cannot be had.

    Args:
        memory_bytes: of address space.
        disk_bytes: of one file in `folder`; 0: nothing can be written.
        cpu_seconds: after which the kernel kills it, whatever handlers it has.
        user: "same"; "nobody" (needs root); "nobody who reads", whom file permissions do not keep from reading: for a Python
            that only root can read, together with Landlock.
        use_landlock: only the standard library, system libraries, `readable` and `folder` are reachable.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mallopt(-8, 2)  # M_ARENA_MAX: each thread's own would take 128 MB of address space
    threading.stack_size(_THREAD_STACK)
    os.umask(0o077)
    for name, value in (
        ("CPU", cpu_seconds),
        ("AS", memory_bytes),
        ("FSIZE", disk_bytes),
        ("CORE", 0),
        ("NOFILE", OPEN_FILES),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
    ):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if user != "same":
        if user == "nobody who reads" and libc.prctl(8, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "PR_SET_KEEPCAPS")
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _keep_capabilities(libc, _READING if user == "nobody who reads" else 0)
    # 0: no process of the same user may look into this one's memory or environment, which the judge's verdict rests on
    if libc.prctl(4, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_DUMPABLE")
    # a change of user clears it, so it comes after; a parent that is gone by now is seen by the check
    if libc.prctl(1, 9, 0, 0, 0) or os.getppid() != _forker:
        raise OSError(ctypes.get_errno(), "PR_SET_PDEATHSIG")
    if libc.prctl(38, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    if use_landlock:
        landlock.restrict(libc, (*READABLE, *_SYSTEM, *readable), folder)
    seccomp.install(libc, writes=disk_bytes > 0, owns_nothing=user != "same")


def _keep_capabilities(libc: ctypes.CDLL, kept: int) -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)(kept, kept)  # effective, permitted, inheritable; then the upper 32 of each
    if libc.capset(ctypes.byref(header), ctypes.byref(sets)):
        raise OSError(ctypes.get_errno(), "capset")


_forker = os.getpid()  # imported before the fork
