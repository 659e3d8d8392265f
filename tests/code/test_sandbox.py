import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
import sysconfig
import tempfile
from pathlib import Path

import pytest
from attacks import CHEATS, ESCAPES, FORGED, NUMBERS, SLEEPER, escape

from flm.code.cell import landlock, seccomp
from flm.code.sandbox import Limits, Program, Sandbox, _reachable_by_all

if not seccomp.supported():
    pytest.skip("generated code is only run where it can be confined", allow_module_level=True)

TEST = "assert f(20) == 42"


@pytest.fixture(scope="module")
def sandbox():
    return Sandbox(Limits(cpu_seconds=1, wall_seconds=20))


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch, tmp_path_factory):
    """Cells live in a folder of this test's own, since others may run programs on this machine at the same time."""
    tmp_path_factory.getbasetemp()  # pytest's own is made where it always is
    folder = Path(tempfile.mkdtemp(prefix="flm-tests-"))
    folder.chmod(0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))

    def surroundings():
        children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
        escaped = [path for place in ("/tmp", "/dev/shm", "/var/tmp") for path in Path(place).glob("flm-attack*")]
        return len(sum(children, [])), escaped, os.listdir(folder), len(os.listdir("/proc/self/fd"))

    before = surroundings()
    yield
    assert surroundings() == before
    folder.rmdir()


def test_cheats_do_not_pass_or_are_told():
    """Each of them fails, or passes only where it shares a process with the test: then it is suspicious."""
    sandbox = Sandbox(Limits(cpu_seconds=1, wall_seconds=20, memory_mb=512))
    verdicts = dict(zip(CHEATS, sandbox.run_all([Program(source, TEST, ("f",)) for source in CHEATS.values()], 2), strict=True))
    unseen = {name: verdict for name, verdict in verdicts.items() if verdict.passed and not verdict.suspicious}
    assert not unseen and "broken" not in {verdict.stage for verdict in verdicts.values()}
    for name in FORGED:  # these do get the better of the first process, so that the second one has something to tell
        assert verdicts[name].suspicious, (name, verdicts[name])


@pytest.mark.parametrize("test", ["assert f(20) > 41", "assert 42 in f(20)", "assert len(f(20)) == 42 and f(20) == [42] * 42"])
def test_what_claims_to_be_everything_is_told(sandbox, test):
    cheat = sandbox.run(Program(CHEATS["less and more than everything"], test, ("f",)))
    assert cheat.passed and cheat.suspicious


def test_a_sleeper_is_ended_by_the_wall_clock(sandbox):
    impatient = Sandbox(Limits(cpu_seconds=1, wall_seconds=20))
    impatient.limits = Limits(cpu_seconds=1, wall_seconds=1)
    assert impatient.run(Program(SLEEPER, TEST, ("f",))).stage == "timeout"


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    """What an attempt is told: where a secret lies, and a port somebody listens on."""
    secret = tmp_path / "secret.txt"
    secret.write_text("the answers")
    tmp_path.chmod(0o755)
    secret.chmod(0o644)
    monkeypatch.setenv("SECRET", "the answers")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        home = str(Path.home())
        known = {"SECRET": str(secret), "FOLDER": str(tmp_path), "HOME": home, "PARENT": os.getpid(), "PORT": port}
        yield known | {"NR": NUMBERS[platform.machine()]}
    assert secret.read_text() == "the answers" and os.listdir(tmp_path) == ["secret.txt"]
    assert secret.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("user", ["as it is", "same"])
def test_no_door_opens(surroundings, monkeypatch, user):
    """Each attempt says itself what it reached: the test it is put to passes if that is nothing."""
    if user == "same":  # as an ordinary user has it, or root where it cannot become nobody
        monkeypatch.setattr("flm.code.sandbox._user", lambda has_landlock: "same")
    sandbox = Sandbox(Limits(cpu_seconds=10, wall_seconds=60))
    tried = [name for name in ESCAPES if name != "reading" or sandbox.describe()["use_landlock"]]
    test = "found = f()\nassert found == [], found"
    verdicts = sandbox.run_all([Program(escape(name, **surroundings), test, ("f",)) for name in tried], 2)
    for name, verdict in zip(tried, verdicts, strict=True):
        assert verdict.passed and not verdict.suspicious, (name, verdict)


def test_without_landlock(surroundings, monkeypatch, caplog):
    """Nothing opens but what may be read; and root, who may read everything, is then not allowed to."""
    monkeypatch.setattr(landlock, "version", lambda libc: 0)
    libc = ctypes.CDLL(None)
    try:
        if os.geteuid() == 0 and not _reachable_by_all(sysconfig.get_path("stdlib")):
            with pytest.raises(ValueError, match="as the user nobody"):
                Sandbox()
            return
        bare = Sandbox(Limits(cpu_seconds=10, wall_seconds=60))
        assert "no Landlock here" in caplog.text
        for name in set(ESCAPES) - {"reading"}:
            verdict = bare.run(Program(escape(name, **surroundings), "found = f()\nassert found == [], found", ("f",)))
            assert verdict.passed, verdict
        source = "def f(path):\n    with open(path, 'rb') as file:\n        return file.read(1)"
        for name in ("environ", "mem", "maps"):
            test = f"try:\n    f('/proc/{os.getpid()}/{name}')\nexcept PermissionError:\n    pass\nelse:\n    assert False"
            assert bare.run(Program(source, test, ("f",))).passed
    finally:
        libc.prctl(4, 1, 0, 0, 0)  # this process may be looked into again


def test_right_and_wrong_programs(sandbox):
    cases = {
        ("def f(x):\n    return x + 22", TEST): "passed",
        ("def f(x):\n    return x", TEST): "failed",
        ("", TEST): "failed",
        ("def f(x:\n", TEST): "syntax",
        ("import nothing_of_the_kind\n", TEST): "raised",
        ("def f(x):\n    return x + 22", "assert f("): "broken",
        ("def f(x):\n    return x + 22", "import sys\nf(20)\nsys.exit(0)"): "failed",
    }
    verdicts = sandbox.run_all([Program(source, test, ("f",)) for source, test in cases], workers=3)
    assert [verdict.stage for verdict in verdicts] == list(cases.values())
    assert [verdict.compiled for verdict in verdicts] == [stage not in ("syntax", "broken") for stage in cases.values()]


def test_a_death_cannot_be_caught(sandbox):
    """A test that takes any exception for a right answer does not take the end of the process for one."""
    test = "try:\n    f(20)\nexcept:\n    pass"
    assert sandbox.run(Program("import os\ndef f(x):\n    os._exit(0)", test, ("f",))).stage == "died"
    assert sandbox.run(Program("def f(x):\n    raise ValueError(x)", test, ("f",))).passed


def test_helpers_of_the_reference_are_the_judges_own(sandbox):
    """A program that redefines what the test measures with changes nothing."""
    reference = "def measure(x):\n    return x * 2\ndef f(x):\n    return 21\n"
    test = "assert measure(f(0)) == 42"
    forged = "def measure(x):\n    return 42\ndef f(x):\n    return 0\n"
    assert sandbox.run(Program(forged, test, ("f",), reference)).suspicious
    right = sandbox.run(Program("def measure(x):\n    return x * 2\ndef f(x):\n    return 21", test, ("f",), reference))
    assert right.passed and not right.suspicious


def test_impossible_limits_and_machines_are_told():
    with pytest.raises(ValueError, match=r"code_eval\.limits"):
        Limits(memory_mb=1)
    with pytest.raises(ValueError, match="cannot hold generated code safely"):
        Sandbox(Limits(wall_seconds=1e-3))


ALLOW, KILL = 0x7FFF0000, 0x80000000
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def answer(machine, number, arguments=(0, 0, 0, 0, 0, 0), architecture=None, writes=True, owns_nothing=True):
    """What the kernel would make of a call: the filter, interpreted."""
    raw = seccomp.program(machine, 77, writes, owns_nothing)
    data = struct.pack("IIQ6Q", number, architecture or ARCHITECTURES[machine][1], 0, *arguments)
    place, register = 0, 0
    while True:
        operation, yes, no, constant = struct.unpack_from("HBBI", raw, 8 * place)
        place += 1
        if operation == 0x20:
            register = struct.unpack_from("I", data, constant)[0]
        elif operation == 0x54:
            register &= constant
        elif operation == 0x15:
            place += yes if register == constant else no
        else:
            assert operation == 0x06
            return constant


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_filter_call_by_call(machine, writes):
    column = ARCHITECTURES[machine][0]
    denied, absent, unsupported, ignored = (0x00050000 | number for number in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, 0))
    simple = {numbers[column]: ALLOW for numbers in seccomp.ALLOWED.values()} | {435: absent, 437: absent}
    simple |= {numbers[column]: unsupported for numbers in seccomp._UNSUPPORTED.values()}
    if writes:
        simple |= {numbers[column]: ALLOW for numbers in seccomp.WRITING.values()}
        simple |= {numbers[column]: ignored for numbers in seccomp._OWNING.values()}
    conditional = {numbers[column] for numbers, _ in seccomp.conditional(77, writes)} - {None}
    assert not conditional & set(simple)
    for number in set(range(1024)) - conditional:
        assert answer(machine, number, writes=writes, owns_nothing=False) == simple.get(number, denied), number
    for name in set(NUMBERS[machine]) - {"clone3"}:
        assert answer(machine, NUMBERS[machine][name], writes=writes) == denied
    assert answer(machine, 0, architecture=0x40000003) == answer(machine, 63, architecture=0x40000003) == KILL  # 32 bits

    def allowed(number, *arguments):
        found = answer(machine, number, (*arguments, *[0] * (6 - len(arguments))), writes=writes)
        assert found in (ALLOW, denied)
        return found == ALLOW

    opening = (257, 56)[column]
    for flags in (os.O_RDONLY, os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_PATH):
        assert allowed(opening, 0, 0, flags)
    for flags in (
        os.O_WRONLY,
        os.O_RDWR | os.O_CREAT | os.O_EXCL,
        os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
        os.O_RDWR | os.O_APPEND,
    ):
        assert allowed(opening, 0, 0, flags | os.O_CLOEXEC) == writes
    for flags in (os.O_TRUNC, os.O_TMPFILE | os.O_RDWR, 3, 3 | os.O_TRUNC):
        assert not allowed(opening, 0, 0, flags)
    control = (72, 25)[column]
    for command in (fcntl.F_GETFL, fcntl.F_SETFL, fcntl.F_DUPFD_CLOEXEC, fcntl.F_SETLK):
        assert allowed(control, 0, command)
    for command in (fcntl.F_SETOWN, fcntl.F_SETSIG, 15, fcntl.F_NOTIFY, fcntl.F_SETLEASE):
        assert not allowed(control, 0, command)
    limits = (302, 261)[column]
    assert allowed(limits, 0, 0, 0, 1 << 40) and allowed(limits, 0, 3, 1 << 40) and allowed(limits, 77, 3, 1 << 40)
    assert not allowed(limits, 0, 0, 0x7FFC12345678) and not allowed(limits, 78, 3, 1 << 40)
    assert not allowed(limits, 0, 0, 1 << 32)  # a pointer whose low half is 0 would look like none
    thread = 0x003D0F00
    assert allowed((56, 220)[column], thread) and not any(allowed((56, 220)[column], thread ^ 1 << bit) for bit in range(22))
    assert not any(allowed((56, 220)[column], thread | 1 << bit) for bit in range(23, 32))
    for number in (62, 129)[column], (234, 131)[column]:
        assert allowed(number, 77) and not any(allowed(number, other) for other in (0, 1, 76, 78, 0xFFFFFFFF))
    pair, sendto = (53, 199)[column], (44, 206)[column]
    assert allowed(pair, 1, 1 | 0o2000000)
    assert not any(allowed(pair, *kind) for kind in ((1, 2), (1, 5), (2, 1), (16, 1), (1, 3)))
    assert allowed(sendto, 3, 1 << 40, 1)
    assert not allowed(sendto, 3, 1 << 40, 1, 0, 1 << 40) and not allowed(sendto, 3, 0, 1, 0, 1)


def test_what_the_test_hands_over_is_no_way_in(sandbox):
    """Apart, a program holds proxies of the test's functions, iterators and objects, and finds nothing behind them."""
    source = """
def f(thing):
    if type(thing).__name__ != "Remote":
        return []  # together
    found, peer = [], vars(thing)["_peer"]
    for name in ("__globals__", "__code__", "__closure__", "__self__", "__builtins__", "__func__", "__wrapped__",
                 "__defaults__", "gi_frame", "gi_code", "f_globals", "_secret"):
        try:
            getattr(thing, name)
            found.append(name)
        except AttributeError:
            pass
    for do, given in (("call", (print, thing)), ("call", (type, "X", (), {})), ("getattr", (42, "real")), ("hash", (thing,)),
                      ("setattr", (thing, "__class__", 1)), ("setattr", (thing, "_secret", 1)), ("format", (thing, "{}")),
                      ("dir", (thing,)), ("eq", (thing, 1))):
        try:
            peer.ask(do, *given)
            found.append(do)
        except Exception:
            pass
    return found
"""
    test = """
class Thing:
    _secret = 42
    def method(self):
        return 1
def count():
    yield 1
for thing in (lambda: 42, count(), Thing(), Thing().method, Thing):
    assert f(thing) == [], thing
assert Thing._secret == 42
"""
    verdict = sandbox.run(Program(source, test, ("f",)))
    assert verdict.passed and not verdict.suspicious, verdict
