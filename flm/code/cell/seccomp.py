"""A system call filter for a process that only computes: memory, clocks, reading, and the descriptors it was given.

A list of what is allowed, so that calls of future kernels are refused too. Refused with it are: processes and threads, signals
to others, sockets, writing or making files, tracing, namespaces, and every way to change its own limits.
"""

import ctypes
import errno
import platform
import struct

# Numbers by architecture: x86_64, and the generic table that aarch64 uses (None: it has no such call).
ALLOWED: dict[str, tuple[int, int | None]] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "close": (3, 57),
    "lseek": (8, 62), "fstat": (5, 80), "newfstatat": (262, 79), "statx": (332, 291), "stat": (4, None),
    "lstat": (6, None), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49), "statfs": (137, 43),
    "fstatfs": (138, 44), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "pipe2": (293, 59), "poll": (7, None),
    "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_pwait": (281, 22), "epoll_wait": (232, None), "eventfd2": (290, 19), "brk": (12, 214), "mmap": (9, 222),
    "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233), "futex": (202, 98),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "nanosleep": (35, 101), "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "times": (100, 153), "getrusage": (98, 165), "getrlimit": (97, 163), "sysinfo": (99, 179), "uname": (63, 160),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getrandom": (318, 278), "getcpu": (309, 168), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "setitimer": (38, 103),
    "getitimer": (36, 102), "alarm": (37, None), "pause": (34, None), "rseq": (334, 293), "restart_syscall": (219, 128),
    "exit": (60, 93), "exit_group": (231, 94), "fadvise64": (221, 223),
}  # fmt: skip

# Allowed where each of some 32-bit words, under a mask, is one of some values. The word 2 n is the low half of argument n,
# which is all the kernel reads of an int; of a pointer the high half, 2 n + 1, counts as well.
_WRITING = 0o3 | 0o100 | 0o1000 | 0o2000 | 0o20000000  # access mode, O_CREAT, O_TRUNC, O_APPEND, O_TMPFILE
_ALL = 0xFFFFFFFF
CONDITIONAL: dict[str, tuple[tuple[int, int | None], tuple[tuple[int, int, tuple[int, ...]], ...]]] = {
    "open": ((2, None), ((2, _WRITING, (0,)),)),
    "openat": ((257, 56), ((4, _WRITING, (0,)),)),
    # not F_SETOWN and its kin, by which the kernel would signal another process
    "fcntl": ((72, 25), ((2, _ALL, (0, 1, 2, 3, 4, 1030)),)),
    "ioctl": ((16, 29), ((2, _ALL, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),)),  # terminal?, size, FIONREAD, flags
    "prlimit64": ((302, 261), ((4, _ALL, (0,)), (5, _ALL, (0,)))),  # asking, not setting: the new limits are a null pointer
}
# glibc turns to the older call when it hears that there is none of these; another error would be taken for an answer.
_ABSENT = {"clone3": (435, 435), "openat2": (437, 437)}

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data (little-endian)


def supported() -> bool:
    return platform.system() == "Linux" and platform.machine() in _ARCHITECTURES


def program(machine: str) -> bytes:
    """The filter as an array of struct sock_filter, for "x86_64" or "aarch64"."""
    column, audit = _ARCHITECTURES[machine]
    code: list[tuple[int, int, int, int]] = [  # operation, jump if true, jump if false, constant
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for numbers in ALLOWED.values():
        if numbers[column] is not None:
            code += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ALLOW)]
    for numbers in _ABSENT.values():
        code += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    refused = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    for numbers, conditions in CONDITIONAL.values():
        if numbers[column] is None:
            continue
        test = []
        for word, mask, values in conditions:
            test += [(_LOAD, 0, 0, _ARGUMENTS + 4 * word), (_AND, 0, 0, mask)]
            # each value, if it is this one, leaps over the other values and the refusal
            test += [(_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)] + [refused]
        test.append((_RETURN, 0, 0, _ALLOW))
        code += [(_EQUAL, 0, len(test), numbers[column]), *test]
    code.append(refused)
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install(libc: ctypes.CDLL) -> None:
    """From here on, for good, in this process. OSError where the kernel will not."""
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    raw = program(platform.machine())
    if libc.prctl(22, 2, ctypes.byref(_Program(len(raw) // 8, raw)), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "no system call filter")
