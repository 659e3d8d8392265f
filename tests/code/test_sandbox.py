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
from attacks import CHEATS, ESCAPES, NUMBERS, SLEEPER, escape

from flm.code.cell import landlock, seccomp
from flm.code.sandbox import Limits, Program, Sandbox, _reachable_by_all

if not seccomp.supported():
    pytest.skip("generated code is only run where it can be confined", allow_module_level=True)

TEST = "assert f(20) == 42"


@pytest.fixture(scope="module")
def sandbox():
    return Sandbox(Limits(cpu_seconds=1, wall_seconds=20))


@pytest.fixture(autouse=True)
def nothing_left():
    def surroundings():
        children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
        folders = [Path(place) for place in (tempfile.gettempdir(), "/dev/shm", "/var/tmp")]
        ours = [
            str(path) for folder in folders for path in folder.glob("flm-*") if path.name.startswith(("flm-code", "flm-attack"))
        ]
        return sorted(sum(children, [])), sorted(ours), len(os.listdir("/proc/self/fd"))

    before = surroundings()
    yield
    assert surroundings() == before


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_do_not_pass(sandbox, name):
    verdict = sandbox.run(Program(CHEATS[name], TEST, ("f",)))
    assert not verdict.passed and verdict.stage != "broken", verdict


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


@pytest.mark.parametrize("name", ESCAPES)
def test_no_door_opens(sandbox, surroundings, name):
    """The attempt says itself what it reached: the test it is put to passes if that is nothing."""
    generous = Sandbox(Limits(cpu_seconds=10, wall_seconds=60))
    program = Program(escape(name, **surroundings), "found = f()\nassert found == [], found", ("f",))
    verdict = generous.run(program)
    if name == "reading" and not sandbox.describe()["use_landlock"]:
        pytest.skip("what the user may read can be read without Landlock")
    assert verdict.passed, verdict


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


def test_plain_values_cross_unchanged(sandbox):
    test = """
import math
values = [None, True, 3, -2.5, 1e300, math.inf, -0.0, 10**5000, "a\\nb\\ud800\\u00e9", b"\\x00\\xff", 1 + 2j,
          (1, (2,), []), [[1], {}], {1, 2}, frozenset("ab"), {1: [2], "a": {(1, 2): None}},
          range(3, 9, 2), bytearray(b"ab"), (), set()]
for value in values:
    back = f(value)
    assert back == value and type(back) is type(value), value
assert math.isnan(f(math.nan)) and math.copysign(1, f(-0.0)) == -1
assert f(value=4) == 4 and f(True) is True
"""
    assert sandbox.run(Program("def f(value):\n    return value", test, ("f",))).passed


def test_what_a_function_does_to_its_arguments_is_seen(sandbox):
    source = """
def f(items, table, names):
    items.sort()
    table["x"] = [1]
    names.discard(1)
"""
    test = """
items, table, names = [3, 1, 2], {}, {1, 2}
same = items
assert f(items, table, names) is None
assert same == [1, 2, 3] and table == {"x": [1]} and names == {2}
"""
    assert sandbox.run(Program(source, test, ("f",))).passed


def test_subclasses_and_iterators_cross_as_what_they_hold(sandbox):
    source = """
from collections import Counter, OrderedDict, defaultdict, namedtuple
def f(kind):
    return {
        "counter": Counter("aab"), "ordered": OrderedDict(a=1), "default": defaultdict(int, a=1),
        "named": namedtuple("P", "x y")(1, 2), "map": map(str, [1, 2]), "generator": (x for x in (1, 2)),
        "keys": {"a": 1}.keys(), "string": type("S", (str,), {"__eq__": lambda s, o: True, "__hash__": str.__hash__})("a"),
    }[kind]
"""
    test = """
assert f("counter") == {"a": 2, "b": 1} and f("ordered") == {"a": 1} == f("default")
assert f("named") == (1, 2) and list(f("map")) == ["1", "2"] and sum(f("generator")) == 3
assert f("keys") == {"a"} and f("map") != ["1", "2"]
assert f("string") == "a" and f("string") != "b"
"""
    assert sandbox.run(Program(source, test, ("f",))).passed


def test_objects_of_the_program_are_held_by_handle(sandbox):
    source = """
class Node:
    def __init__(self, value):
        self.value, self.left = value, None
    def __len__(self):
        return 7
def height(node):
    return 0 if node is None else 1 + height(node.left)
"""
    test = """
root = Node(1)
root.left = Node(2)
root.left.left = Node(3)
assert height(root) == 3 and root.left.value == 2 and len(root) == 7
assert root != Node(1) and height(root.left) == 2
"""
    assert sandbox.run(Program(source, test, ("Node", "height"))).passed


def test_helpers_of_the_reference_are_the_judges_own(sandbox):
    """A program that redefines what the test measures with changes nothing."""
    reference = "def measure(x):\n    return x * 2\ndef f(x):\n    return 21\n"
    test = "assert measure(f(0)) == 42"
    forged = "def measure(x):\n    return 42\ndef f(x):\n    return 0\n"
    assert not sandbox.run(Program(forged, test, ("f",), reference)).passed
    assert sandbox.run(Program("def f(x):\n    return 21", test, ("f",), reference)).passed


def test_exceptions_keep_their_kind(sandbox):
    source = "class Mine(KeyError):\n    pass\ndef f(x):\n    raise Mine(x)"
    test = "try:\n    f(1)\nexcept ValueError:\n    raise\nexcept KeyError:\n    pass\nelse:\n    assert False"
    assert sandbox.run(Program(source, test, ("f",))).passed


def test_impossible_limits_and_machines_are_told():
    with pytest.raises(ValueError, match=r"code_eval\.limits"):
        Limits(memory_mb=1)
    with pytest.raises(ValueError, match="cannot hold generated code safely"):
        Sandbox(Limits(wall_seconds=1e-3))


ALLOW, KILL = 0x7FFF0000, 0x80000000
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def answer(machine, number, arguments=(0, 0, 0, 0, 0, 0), architecture=None):
    """What the kernel would make of a call: the filter, interpreted."""
    raw = seccomp.program(machine)
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


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_filter_call_by_call(machine):
    column = ARCHITECTURES[machine][0]
    denied, absent = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
    allowed = {numbers[column] for numbers in seccomp.ALLOWED.values()} - {None}
    conditional = {numbers[column] for numbers, _ in seccomp.CONDITIONAL.values()} - {None}
    for number in range(1024):
        if number not in conditional:
            assert answer(machine, number) == (ALLOW if number in allowed else absent if number in (435, 437) else denied)
    for number in NUMBERS[machine].values():
        assert number not in allowed
    assert answer(machine, 0, architecture=0x40000003) == answer(machine, 63, architecture=0x40000003) == KILL  # 32 bits

    opening = seccomp.CONDITIONAL["openat"][0][column]
    for flags in (os.O_RDONLY, os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_PATH):
        assert answer(machine, opening, (0, 0, flags, 0, 0, 0)) == ALLOW
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_APPEND, os.O_TMPFILE, 3):
        assert answer(machine, opening, (0, 0, flags | os.O_CLOEXEC, 0, 0, 0)) == denied
    control = seccomp.CONDITIONAL["fcntl"][0][column]
    assert answer(machine, control, (0, fcntl.F_GETFL, 0, 0, 0, 0)) == ALLOW
    for command in (fcntl.F_SETOWN, fcntl.F_SETSIG, 15, fcntl.F_NOTIFY, fcntl.F_SETLEASE):
        assert answer(machine, control, (0, command, 0, 0, 0, 0)) == denied
    limits = seccomp.CONDITIONAL["prlimit64"][0][column]
    assert answer(machine, limits, (0, 0, 0, 1 << 40, 0, 0)) == ALLOW
    assert answer(machine, limits, (0, 0, 0x7FFC12345678, 0, 0, 0)) == denied
    # a pointer whose low half is 0 would look like none
    assert answer(machine, limits, (0, 0, 1 << 32, 0, 0, 0)) == denied
