"""Programs that try to cheat or to get out. Each defines `f`; the right answer to f(20) is 42."""

from pathlib import Path

# Whether this process is the one that program and test share, the descriptors of a cell, and a verdict forged on them.
_FORGE = """
import json, os, sys
def functions():
    frame, found = sys._getframe(), {}
    while frame:
        found[frame.f_code.co_name] = frame
        frame = frame.f_back
    return found
def together():
    return functions()["_play"].f_locals["role"] == "together"
def forge():
    nonce = ""
    for descriptor in range(3, 64):
        try:
            nonce = os.pread(descriptor, 1 << 20, 0)[-32:].decode() or nonce
        except (OSError, ValueError):
            pass
    line = json.dumps({"nonce": nonce, "stage": "passed", "detail": "", "value": None}).encode()
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, line)
        except OSError:
            pass
    os._exit(0)
"""

# The names of the module that speaks to the judge, once this process is apart from the test; together the verdict is forged.
_WIRE = (
    _FORGE
    + """
if together():
    forge()
WIRE = vars(functions()["_play"].f_globals["candidate"].wire)
"""
)

PIECES = {"FORGE\n": _FORGE, "WIRE\n": _WIRE}


def _read() -> dict[str, str]:
    found = {}
    for block in Path(__file__).with_name("cheats.txt").read_text().split("=== ")[1:]:
        name, source = block.split("\n", 1)
        piece = next((piece for piece in PIECES if source.startswith(piece)), "")
        found[name] = PIECES.get(piece, "") + source.removeprefix(piece)
    return found


# Must not pass, or be called suspicious. What they answer, if anything, is wrong.
CHEATS = _read()

# Of these the ones that pass together with the test.
FORGED = ("the nonce read and the verdict forged", "a verdict forged while loading", "the answer read off the test",
          "equal to everything", "a number equal to everything", "a text equal to everything", "a false fraction",
          "a mock that is equal to anything", "another meaning of 42", "names that nobody asked for", "questions to the judge",
          "another wire", "a message announced as endless", "a message nested without end")  # fmt: skip

# Sleeps, deaf to everything: only the wall clock ends it.
SLEEPER = """
import signal, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
def f(x):
    while True:
        time.sleep(1000)
"""

# f() tries every door and returns the names of those that opened.
_DOORS = """
opened = []
def door(name):
    def attempt(open_it):
        try:
            result = open_it()
        except (OSError, RuntimeError, MemoryError, ValueError, ImportError, AttributeError):
            return
        if result not in (None, -1):
            opened.append(name)
    return attempt
def raw(number, *arguments):
    import ctypes
    return ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)
"""

ESCAPES = {
    "processes": """
import multiprocessing, os, subprocess
def f():
    door("fork")(os.fork)
    door("forkpty")(os.forkpty)
    door("spawn")(lambda: os.posix_spawn("/bin/sh", ["sh", "-c", "sleep 1000"], {}))
    door("subprocess")(lambda: subprocess.Popen(["sleep", "1000"]))
    door("system")(lambda: None if os.system("sleep 1000 &") else 1)
    # with one flag less than a thread has, one more, and in namespaces of its own
    for flags in (0x003C0F00, 0x003D0E00, 0x013D0F00, 0x103D0F00, 0x00000F00, 0x4111):
        door(f"clone {flags:x}")(lambda: raw(NR["clone"], flags, 0, 0, 0, 0))
    door("multiprocessing")(lambda: multiprocessing.get_context("fork").Process(target=print).start() or 1)
    door("exec")(lambda: os.execv("/bin/sh", ["sh", "-c", "sleep 1000"]))
    door("clone")(lambda: raw(NR["clone"], 17, 0, 0, 0, 0))
    door("vfork")(lambda: raw(NR["clone3"], 0, 0))
    door("setsid")(os.setsid)
    door("setpgid")(lambda: os.setpgid(0, 0) or 1)
    return opened
""",
    "files": """
import os
def f():
    for folder in ("..", "/tmp", "/dev/shm", "/var/tmp", HOME, FOLDER):
        door("write in " + folder)(lambda: open(folder + "/flm-attack", "w"))
        door("append in " + folder)(lambda: os.open(folder + "/flm-attack", os.O_RDONLY | os.O_CREAT))
        door("unnamed in " + folder)(lambda: os.open(folder, os.O_TMPFILE | os.O_RDWR))
        door("folder in " + folder)(lambda: os.mkdir(folder + "/flm-attack") or 1)
        door("link in " + folder)(lambda: os.symlink("/", folder + "/flm-attack") or 1)
        door("pipe in " + folder)(lambda: os.mkfifo(folder + "/flm-attack") or 1)
    door("overwrite")(lambda: open(SECRET, "r+"))
    door("truncate")(lambda: os.truncate(SECRET, 0) or 1)
    door("remove")(lambda: os.unlink(SECRET) or 1)
    door("rename")(lambda: os.rename(SECRET, SECRET + "x") or 1)
    door("chmod")(lambda: os.chmod(SECRET, 0o777) or os.stat(SECRET).st_mode & 0o777 == 0o777 or None)
    door("chmod own")(lambda: os.chmod(".", 0o777) or os.stat(".").st_mode & 0o777 == 0o777 or None)
    door("chown")(lambda: os.chown(SECRET, 1, 1) or 1)
    door("touch")(lambda: os.utime(SECRET, (1, 1)) or os.stat(SECRET).st_mtime == 1 or None)
    door("move out")(lambda: (open("x", "w").close(), os.rename("x", FOLDER + "/x")) and 1)
    door("move in")(lambda: os.rename(SECRET, "x") or 1)
    door("link in")(lambda: os.link(SECRET, "x") or 1)
    door("symlink in")(lambda: os.symlink(SECRET, "x") or 1)
    door("pipe in")(lambda: os.mkfifo("x") or 1)
    door("device in")(lambda: os.mknod("x", 0o20666, os.makedev(1, 1)) or 1)
    door("unnamed in")(lambda: os.open(".", os.O_TMPFILE | os.O_RDWR))
    door("cut by reading")(lambda: os.open(os.__file__, os.O_RDONLY | os.O_TRUNC))
    door("library")(lambda: open(os.__file__, "a"))
    door("replace the folder")(lambda: os.rename(os.getcwd(), "/tmp/flm-attack") or 1)
    door("memory file")(lambda: os.memfd_create("x"))
    door("xattr")(lambda: os.setxattr(SECRET, "user.x", b"1") or 1)
    return opened
""",
    "reading": """
import os
def f():
    for place in (SECRET, "/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/self/maps", "/proc/version"):
        door(place)(lambda: open(place, "rb").read(10))
    for place in ("/", "/tmp", HOME, FOLDER, "/proc", "/proc/self/fd"):
        door("list " + place)(lambda: os.listdir(place))
    for process in {os.getppid(), PARENT, 1, *range(os.getpid() - 30, os.getpid() + 30)}:
        for name in ("environ", "cmdline", "mem", "maps", "cwd", "root", "fd"):
            path = f"/proc/{process}/{name}"
            door(path)(lambda: open(path, "rb").read(10))
            door("link " + path)(lambda: name in ("cwd", "root") and os.listdir(path) or None)
    if os.environ:
        opened.append("environment")
    descriptors = []
    for number in range(256):
        try:
            os.fstat(number)
            descriptors.append(number)
        except OSError:
            pass
    if len(descriptors) > 6:  # 0, 1, 2, its task and its pipes
        opened.append(descriptors)
    door("a folder with something in it")(lambda: os.listdir(".") or None)
    for package in ("torch", "transformers", "yaml", "flm", "pip"):
        door(package)(lambda: __import__(package))
    return opened
""",
    "network": """
import socket, os
def f():
    for family in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET"):
        for kind in ("SOCK_STREAM", "SOCK_DGRAM", "SOCK_RAW"):
            door(family + kind)(lambda: socket.socket(getattr(socket, family), getattr(socket, kind)))
    for family, kind in ((1, 2), (1, 5), (1, 3), (16, 2), (2, 1)):
        door(f"pair {family} {kind}")(lambda: socket.socketpair(family, kind))
    one, other = socket.socketpair()
    door("from a pair to elsewhere")(lambda: one.sendto(b"x", "/run/systemd/notify"))
    door("reconnect a pair")(lambda: one.connect("/run/systemd/notify") or 1)
    door("a message with descriptors")(lambda: socket.send_fds(one, [b"x"], [0]))
    door("connect")(lambda: socket.create_connection(("127.0.0.1", PORT), 1))
    door("io_uring")(lambda: raw(NR["io_uring_setup"], 8, (__import__("ctypes").c_char * 120)()))
    return opened
""",
    "signals and other processes": """
import ctypes, fcntl, os, resource, signal
def f():
    buffer = ctypes.create_string_buffer(64)
    for process in (os.getppid(), PARENT, os.getpid() - 1, os.getpid() + 1, -1, 0):
        for number in (0, signal.SIGCONT, signal.SIGUSR1):
            door(f"kill {process}")(lambda: os.kill(process, number) or 1)
            door(f"tgkill {process}")(lambda: raw(NR["tgkill"], process, process, number))
            door(f"tkill {process}")(lambda: raw(NR["tkill"], process, number))
        door(f"killpg {process}")(lambda: os.killpg(process, signal.SIGCONT) or 1)
        door(f"pidfd {process}")(lambda: os.pidfd_open(process))
        door(f"ptrace {process}")(lambda: raw(NR["ptrace"], 16, process, 0, 0))
        door(f"read {process}")(lambda: raw(NR["process_vm_readv"], process, buffer, 1, buffer, 1, 0))
        door(f"limit {process}")(lambda: resource.prlimit(process, resource.RLIMIT_CPU, (1, 1)))
        door(f"owner {process}")(lambda: fcntl.fcntl(0, fcntl.F_SETOWN, process) or 1)
        door(f"nice {process}")(lambda: os.setpriority(os.PRIO_PROCESS, process, 5) or 1)
        door(f"affinity {process}")(lambda: os.sched_setaffinity(process, [0]) or 1)
    return opened
""",
    "limits": """
import os, resource
def f():
    for name in ("RLIMIT_CPU", "RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_NOFILE"):
        limit = getattr(resource, name)
        door(name)(lambda: resource.setrlimit(limit, (resource.RLIM_INFINITY,) * 2) or 1)
    door("setuid")(lambda: os.setuid(0) or 1)
    door("setgroups")(lambda: os.setgroups([0]) or 1)
    door("unshare")(lambda: raw(NR["unshare"], 0x10000000))
    door("mount")(lambda: raw(NR["mount"], 0, 0, 0, 0, 0))
    door("chroot")(lambda: os.chroot("/") or 1)
    door("prctl")(lambda: raw(NR["prctl"], 4, 1, 0, 0, 0))
    door("parent death")(lambda: raw(NR["prctl"], 1, 0, 0, 0, 0))
    door("seccomp")(lambda: raw(NR["seccomp"], 0, 0, 0))
    door("key ring")(lambda: raw(NR["keyctl"], 0, -3, 1))
    door("shared memory")(lambda: raw(NR["shmget"], 4242, 1 << 20, 0o1666))
    door("message queue")(lambda: raw(NR["msgget"], 4242, 0o1666))
    door("userfault")(lambda: raw(NR["userfaultfd"], 1))
    door("bpf")(lambda: raw(NR["bpf"], 0, 0, 0))
    door("new pages")(lambda: bytearray(2 << 30))
    return opened
""",
    "the nonce": """
import gc, re, sys
def f():
    frame, seen = sys._getframe(), []
    while frame:
        seen += [frame.f_locals, frame.f_globals]
        frame = frame.f_back
    modules = [vars(module) for module in list(sys.modules.values()) if hasattr(module, "__dict__")]
    for place in [*seen, *modules, *(found for found in gc.get_objects() if isinstance(found, dict))]:
        for key, value in list(place.items()):
            if key == "nonce" or isinstance(value, str) and re.fullmatch("[0-9a-f]{32}", value):
                opened.append(value)
    return opened
""",
}

# Numbers of what Python has no name for.
NUMBERS = {
    "x86_64": {"clone": 56, "clone3": 435, "io_uring_setup": 425, "tgkill": 234, "tkill": 200, "ptrace": 101,
               "process_vm_readv": 310, "unshare": 272, "mount": 165, "prctl": 157, "seccomp": 317, "keyctl": 250,
               "shmget": 29, "msgget": 68, "userfaultfd": 323, "bpf": 321},
    "aarch64": {"clone": 220, "clone3": 435, "io_uring_setup": 425, "tgkill": 131, "tkill": 130, "ptrace": 117,
                "process_vm_readv": 270, "unshare": 97, "mount": 40, "prctl": 167, "seccomp": 277, "keyctl": 219,
                "shmget": 194, "msgget": 186, "userfaultfd": 282, "bpf": 280},
}  # fmt: skip


def escape(name: str, **given: object) -> str:
    """The source of an attempt, with what it is told about its surroundings."""
    return "\n".join(f"{key} = {value!r}" for key, value in given.items()) + _DOORS + ESCAPES[name]
