"""Landlock: from here on this process may read what is below some folders, write below one, and reach no other file."""

import ctypes
import os
from collections.abc import Iterable

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same numbers on every architecture
_WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
# removing folders and files, making folders and files, moving (from version 2) and cutting files (from version 3)
_WRITING = _WRITE_FILE | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 13 | _TRUNCATE
# Rights on files that each version of the interface knows, so that all of them are handled, and those not granted denied.
_HANDLED = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_NETWORK = 0b11  # binding and connecting TCP, since version 4
_SCOPED = 0b11  # abstract sockets and signals outside, since version 6


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def version(libc: ctypes.CDLL) -> int:
    """Of the kernel's interface; 0 where there is none."""
    return max(0, libc.syscall(_CREATE, None, ctypes.c_size_t(0), 1))


def restrict(libc: ctypes.CDLL, readable: Iterable[str], folder: str) -> None:
    """Only these files and folders (those that exist) stay readable, only below `folder` can be written.

    Needs PR_SET_NO_NEW_PRIVS. OSError where it fails.
    """
    known = version(libc)
    handled = _HANDLED[min(known, 5)]
    rules = _Ruleset(handled, _NETWORK if known >= 4 else 0, _SCOPED if known >= 6 else 0)
    size = 24 if known >= 6 else 16 if known >= 4 else 8
    ruleset = libc.syscall(_CREATE, ctypes.byref(rules), ctypes.c_size_t(size), 0)
    _checked(ruleset)
    places = dict.fromkeys(readable, _READ_FILE | _READ_DIR)
    places |= {folder: _READ_FILE | _READ_DIR | _WRITING, os.devnull: _READ_FILE | _WRITE_FILE | _TRUNCATE}
    for path, rights in places.items():
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        if not os.path.isdir(path):
            rights &= _WRITE_FILE | _READ_FILE | _TRUNCATE
        _checked(libc.syscall(_ADD, ruleset, 1, ctypes.byref(_Beneath(rights & handled, place)), 0))
        os.close(place)
    _checked(libc.syscall(_RESTRICT, ruleset, 0))
    os.close(ruleset)


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "Landlock")
