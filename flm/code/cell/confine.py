"""Giving up everything a computation does not need, before code of unknown origin runs in this process."""

import ctypes
import os
import resource
import sys
import sysconfig

import landlock
import seccomp

NOBODY = 65534
# Where extension modules find the libraries they are linked to, and Python its time zones and random bytes.
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/localtime",
           "/usr/share/zoneinfo", "/dev/null", "/dev/urandom")  # fmt: skip


def confine(memory_bytes: int, cpu_seconds: int, drop_user: bool, use_landlock: bool) -> None:
    """Irrevocable for this process. OSError where a layer that was asked for cannot be had.

    Args:
        memory_bytes: of address space.
        cpu_seconds: after which the kernel kills it, whatever handlers it has.
        drop_user: become nobody (needs to be root).
        use_landlock: only the standard library and system libraries stay readable.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    os.umask(0o077)
    for name, value in (
        ("CPU", cpu_seconds),
        ("AS", memory_bytes),
        ("FSIZE", 0),
        ("CORE", 0),
        ("NOFILE", 64),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
    ):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if drop_user:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _drop_capabilities(libc)
    # 0: no process of the same user may look into this one's memory or environment, which the judge's verdict rests on
    if libc.prctl(4, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_DUMPABLE")
    # a change of user clears it, so it comes after; a parent that is gone by now is seen by the check
    if libc.prctl(1, 9, 0, 0, 0) or os.getppid() == 1 != _initial_parent:
        raise OSError(ctypes.get_errno(), "PR_SET_PDEATHSIG")
    if libc.prctl(38, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    if use_landlock:
        library = sysconfig.get_paths()
        places = {library["stdlib"], library["platstdlib"], os.path.join(sys.base_exec_prefix, "lib")}
        landlock.restrict(libc, (*places, *_SYSTEM))
    seccomp.install(libc)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    nothing = (ctypes.c_uint32 * 6)()
    if libc.capset(ctypes.byref(header), ctypes.byref(nothing)):
        raise OSError(ctypes.get_errno(), "capset")


_initial_parent = os.getppid()
