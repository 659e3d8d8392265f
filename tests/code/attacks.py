"""Programs that try to cheat or to get out. Each defines `f`; the right answer to f(20) is 42."""

# Must not pass. What they answer, if anything, is wrong.
CHEATS = {
    "exit 0 while loading": "import sys\nsys.exit(0)",
    "exit 0 when called": "def f(x):\n    raise SystemExit(0)",
    "os._exit while loading": "import os\nos._exit(0)",
    "os._exit when called": "import os\ndef f(x):\n    os._exit(0)",
    "exit after an answer that never comes": "import os, atexit\natexit.register(os._exit, 0)\ndef f(x):\n    exit()",
    "a verdict on every descriptor": """
import json, os
def f(x):
    line = json.dumps({"nonce": "0" * 32, "stage": "passed", "detail": ""}).encode() + b"\\n"
    for descriptor in range(64):
        try:
            os.write(descriptor, line)
        except OSError:
            pass
    os._exit(0)
""",
    "equal to everything": """
class Anything:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 42
    def __bool__(self): return True
def f(x):
    return Anything()
""",
    "a number equal to everything": """
class Anything(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 42
def f(x):
    return Anything(0)
""",
    "patched builtins": """
import builtins
class Silent(Exception):
    def __new__(cls, *a): raise SystemExit(0)
builtins.AssertionError = Silent
builtins.exec = builtins.compile = builtins.isinstance = lambda *a, **k: True
def f(x):
    return 0
""",
    "atexit": """
import atexit, os
def forge():
    for descriptor in range(64):
        try:
            os.write(descriptor, b'{"stage": "passed", "nonce": "", "detail": ""}')
        except OSError:
            pass
atexit.register(forge)
def f(x):
    return 0
""",
    "a trace that jumps over assertions": """
import sys
def trace(frame, event, arg):
    if event == "exception":
        frame.f_locals.clear()
    return trace
sys.settrace(trace)
def f(x):
    frame = sys._getframe()
    while frame:
        frame.f_trace = trace
        frame = frame.f_back
    return 0
""",
    "another judge": """
import sys
for module in list(sys.modules.values()):
    for name in ("judge", "_stage"):
        if hasattr(module, name):
            setattr(module, name, lambda *a: ("passed", ""))
def f(x):
    return 0
""",
    "another wire": """
import os, wire
def send(descriptor, message):
    raw = b'{"stage": "ready", "passed": true, "value": ["object", 1, true, "int"], "given": [20]}'
    os.write(descriptor, len(raw).to_bytes(4, "little") + raw)
wire.send = send
def f(x):
    return 0
""",
    "a message announced as endless": """
import os, wire
wire.send = lambda descriptor, message: os.write(descriptor, b"\\xff\\xff\\xff\\xff" * 1000)
def f(x):
    return 0
""",
    "a message nested without end": """
import os, wire
def send(descriptor, message):
    raw = b'{"value": ' + b"[" * 60000
    raw = len(raw).to_bytes(4, "little") + raw
    os.write(descriptor, raw)
wire.send = send
def f(x):
    return 0
""",
    "an exception that the test would catch": "import os\nclass E(ValueError):\n    pass\ndef f(x):\n    raise E('42')",
    "endless output": "def f(x):\n    while True:\n        print('x' * 65536, flush=True)",
    "endless output while loading": "import os\nwhile True:\n    os.write(1, b'x' * 65536)\n    os.write(2, b'x' * 65536)",
    "endless answers": "def f(x):\n    return iter(int, 1)",
    "a huge answer": "def f(x):\n    return 'x' * (64 << 20)",
    "filling memory": "def f(x):\n    held = []\n    while True:\n        held.append(bytearray(1 << 24))",
    "filling memory and going on": """
def f(x):
    held = []
    while True:
        try:
            held.append(bytearray(1 << 20))
        except MemoryError:
            held = held[:8]
""",
    "a number without end": "def f(x):\n    return 10 ** (10 ** 9)",
    "deaf to the CPU limit": """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
def f(x):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
""",
    "a crash": "import ctypes\ndef f(x):\n    ctypes.string_at(0)",
    "a loop of the parser": "f = " + "(" * 5000 + ")" * 5000,
    "recursion": "def f(x):\n    return f(x)",
}

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
    "processes and threads": """
import _thread, multiprocessing, os, subprocess, threading
def f():
    door("fork")(os.fork)
    door("forkpty")(os.forkpty)
    door("spawn")(lambda: os.posix_spawn("/bin/sh", ["sh", "-c", "sleep 1000"], {}))
    door("subprocess")(lambda: subprocess.Popen(["sleep", "1000"]))
    door("system")(lambda: None if os.system("sleep 1000 &") else 1)
    door("thread")(lambda: _thread.start_new_thread(print, ()))
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
    for folder in (".", "/tmp", "/dev/shm", "/var/tmp", HOME, FOLDER):
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
    door("chmod")(lambda: os.chmod(SECRET, 0o777) or 1)
    door("chmod own")(lambda: os.chmod(".", 0o777) or 1)
    door("chown")(lambda: os.chown(SECRET, 1, 1) or 1)
    door("touch")(lambda: os.utime(SECRET) or 1)
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
    if len(descriptors) != 5:  # 0, 1, 2 and its two pipes
        opened.append(descriptors)
    door("a folder with something in it")(lambda: os.listdir(".") or None)
    return opened
""",
    "network": """
import socket, os
def f():
    for family in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET"):
        for kind in ("SOCK_STREAM", "SOCK_DGRAM", "SOCK_RAW"):
            door(family + kind)(lambda: socket.socket(getattr(socket, family), getattr(socket, kind)))
    door("pair")(socket.socketpair)
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
