"""A system call filter for a process that only computes: memory, clocks, threads, files, and the descriptors it was given.

A list of what is allowed, so that calls of future kernels are refused too. Refused with it are: processes, signals to others,
sockets to anywhere, links and devices, tracing, namespaces, and every way to change its own limits. Which files may be reached
is not said here but by Landlock: without it, nothing is opened for writing.
"""

import ctypes
import errno
import os
import platform
import struct

Numbers = tuple[int | None, int | None]  # x86_64, and the generic table that aarch64 uses; None: it has no such call
# Some 32-bit words of the arguments, under a mask, are each one of some values. The word 2 n is the low half of argument n,
# which is all the kernel reads of an int; of a pointer the high half, 2 n + 1, counts as well.
Condition = tuple[int, int, tuple[int, ...]]

ALLOWED: dict[str, Numbers] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "preadv": (295, 69),
    "close": (3, 57), "lseek": (8, 62), "fstat": (5, 80), "newfstatat": (262, 79), "statx": (332, 291), "stat": (4, None),
    "lstat": (6, None), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50),
    "statfs": (137, 43), "fstatfs": (138, 44), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None),
    "pipe2": (293, 59), "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_pwait": (281, 22), "epoll_wait": (232, None),
    "eventfd2": (290, 19), "brk": (12, 214), "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226),
    "mremap": (25, 216), "madvise": (28, 233), "msync": (26, 227), "futex": (202, 98), "set_robust_list": (273, 99),
    "membarrier": (324, 283), "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169),
    "time": (201, None), "times": (100, 153), "getrusage": (98, 165), "getrlimit": (97, 163), "sysinfo": (99, 179),
    "uname": (63, 160), "umask": (95, 166), "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178),
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158),
    "getresuid": (118, 148), "getresgid": (120, 150), "getpgrp": (111, None), "getpgid": (121, 155), "getsid": (124, 156),
    "getrandom": (318, 278), "getcpu": (309, 168), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132), "setitimer": (38, 103), "getitimer": (36, 102), "alarm": (37, None), "pause": (34, None),
    "rseq": (334, 293), "restart_syscall": (219, 128), "exit": (60, 93), "exit_group": (231, 94), "fadvise64": (221, 223),
    # of the two ends that `socketpair` below gives
    "recvfrom": (45, 207), "shutdown": (48, 210), "getsockname": (51, 204), "getsockopt": (55, 209),
}  # fmt: skip

# Changes to files that are open for writing or that Landlock lets this process change.
WRITING: dict[str, Numbers] = {
    "pwrite64": (18, 68), "pwritev": (296, 70), "ftruncate": (77, 46), "fsync": (74, 82), "fdatasync": (75, 83),
    "flock": (73, 32), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None),
    "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
}  # fmt: skip

# Permissions and times of files, over which Landlock has no say: only their owner can change them.
_OWNING: dict[str, Numbers] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
}  # fmt: skip

_ALL = 0xFFFFFFFF
_ACCESS, _CREATE, _TRUNCATE, _APPEND, _UNNAMED = 0o3, 0o100, 0o1000, 0o2000, 0o20000000  # flags of open
# What pthread_create asks for, with glibc and with musl: a thread of this process, not a process.
_THREAD = (0x003D0F00, 0x007D0F00)


def conditional(process: int, writes: bool) -> list[tuple[Numbers, tuple[Condition, ...]]]:
    """Calls that are allowed where all their conditions hold.

    Args:
        process: the caller's own number, the only one it may signal.
        writes: whether files may be opened for writing.
    """
    reading = (_ACCESS | _CREATE | _TRUNCATE | _APPEND | _UNNAMED, (0,))
    # not cut without being opened for writing: older versions of Landlock would not ask
    writing = (_ACCESS | _TRUNCATE | _UNNAMED, (0, 1, 2, 1 | _TRUNCATE, 2 | _TRUNCATE))
    flags = writing if writes else reading
    return [
        ((2, None), ((2, *flags),)),  # open
        ((257, 56), ((4, *flags),)),  # openat
        # fcntl: not F_SETOWN and its kin, by which the kernel would signal another process
        ((72, 25), ((2, _ALL, (0, 1, 2, 3, 4, 5, 6, 7, 1030)),)),
        # ioctl: a terminal? its size, FIONREAD, flags
        ((16, 29), ((2, _ALL, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),)),
        # prlimit64 that asks, not sets: the new limits are a null pointer; the size of the stack, of this process, may be set
        ((302, 261), ((4, _ALL, (0,)), (5, _ALL, (0,)))),
        ((302, 261), ((0, _ALL, (0, process)), (2, _ALL, (3,)))),
        ((56, 220), ((0, _ALL, _THREAD),)),  # clone
        ((62, 129), ((0, _ALL, (process,)),)),  # kill
        ((234, 131), ((0, _ALL, (process,)),)),  # tgkill
        # socketpair of Unix streams, which cannot be sent from to anywhere else
        ((53, 199), ((0, _ALL, (1,)), (2, 0xF, (1,)))),
        ((44, 206), ((8, _ALL, (0,)), (9, _ALL, (0,)))),  # sendto nobody else: the address is a null pointer
    ]


# glibc turns to the older call when it hears that there is none of these; another error would be taken for an answer.
_ABSENT: dict[str, Numbers] = {"clone3": (435, 435), "openat2": (437, 437)}

# No file here has attributes beyond the usual.
_UNSUPPORTED: dict[str, Numbers] = {
    "getxattr": (191, 8), "lgetxattr": (192, 9), "fgetxattr": (193, 10), "listxattr": (194, 11), "llistxattr": (195, 12),
    "flistxattr": (196, 13),
}  # fmt: skip

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data (little-endian)


def supported() -> bool:
    return platform.system() == "Linux" and platform.machine() in _ARCHITECTURES


def program(machine: str, process: int, writes: bool, owns_nothing: bool) -> bytes:
    """The filter as an array of struct sock_filter, for "x86_64" or "aarch64".

    Args:
        process, writes: as in `conditional`.
        owns_nothing: the process's user owns no files but those it makes. Otherwise a change of permissions or times seems to
            succeed and does nothing, since it could be of any file of that user.
    """
    column, audit = _ARCHITECTURES[machine]
    code: list[tuple[int, int, int, int]] = [  # operation, jump if true, jump if false, constant
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    simple = [(ALLOWED, _ALLOW), (_ABSENT, _ERRNO | errno.ENOSYS), (_UNSUPPORTED, _ERRNO | errno.EOPNOTSUPP)]
    if writes:
        simple += [(WRITING, _ALLOW), (_OWNING, _ALLOW if owns_nothing else _ERRNO)]
    for calls, outcome in simple:
        for numbers in calls.values():
            if numbers[column] is not None:
                code += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, outcome)]
    for numbers, conditions in conditional(process, writes):
        if numbers[column] is None:
            continue
        test: list[tuple[int, int, int, int]] = [(_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, _NUMBER)]
        for word, mask, values in reversed(conditions):
            # each value, if it is this one, leaps over the other values; the last one, if not, to the end
            compared = [(_EQUAL, len(values) - 1 - place, 0, value) for place, value in enumerate(values[:-1])]
            compared += [(_EQUAL, 0, len(test) - 1, values[-1])]
            test = [(_LOAD, 0, 0, _ARGUMENTS + 4 * word), (_AND, 0, 0, mask), *compared, *test]
        code += [(_EQUAL, 0, len(test), numbers[column]), *test]
    code.append((_RETURN, 0, 0, _ERRNO | errno.EPERM))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install(libc: ctypes.CDLL, writes: bool, owns_nothing: bool) -> None:
    """From here on, for good, in this process; see `program`. OSError where the kernel will not."""
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    raw = program(platform.machine(), os.getpid(), writes, owns_nothing)
    if libc.prctl(22, 2, ctypes.byref(_Program(len(raw) // 8, raw)), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "no system call filter")
