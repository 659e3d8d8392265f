"""Files of problems that are not what they seem: one line each, in bounded memory and time."""

import gzip
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from code_files import HUMAN_EVAL, MBPP

MEGABYTE = 1 << 20


def member(raw: bytes, times: int) -> bytes:
    """A gzip file of as many members, each of which unpacks to the same."""
    return gzip.compress(raw, 1) * times


def line(base: dict[str, object], **changed: object) -> bytes:
    return json.dumps(base | changed).encode() + b"\n"


LYING = bytearray(gzip.compress(line(HUMAN_EVAL[0])))
LYING[-4:] = (5).to_bytes(4, "little")  # the size it says it unpacks to
FLIPPED = bytearray(gzip.compress(line(HUMAN_EVAL[0]) * 50))
FLIPPED[len(FLIPPED) // 2] ^= 0xFF
HOSTILE = {
    "one line that never ends.jsonl.gz": (member(b"\0" * 16 * MEGABYTE, 64), "longer than 16 MB"),
    "one line of lists.jsonl": (b'{"a": [' + b"[]," * (2 * MEGABYTE) + b"[]]}\n", "neither HumanEval"),
    "many lines of lists.jsonl.gz": (
        member(line(HUMAN_EVAL[0])[:-2] + b', "x": [' + b"[]," * (3 * MEGABYTE) + b"[]]}\n", 3) + member(b"[1]", 1),
        "needs a JSON object",
    ),
    "blank lines.jsonl.gz": (member(b"\n" * MEGABYTE + b" " * 15 * MEGABYTE, 5), "MB up to here|holds no lines"),
    "many problems.jsonl.gz": (member(line(HUMAN_EVAL[0]) * 1000, 25), "more than 20000 problems"),
    "nested.jsonl": (b'{"test_list": ' + b"[" * MEGABYTE, "no valid JSON|nested too deep"),
    "nested well.jsonl": (b'{"test_list": ' + b"[" * 500 + b"]" * 500 + b"}", 'needs a string under "code"'),
    "a number too long.jsonl": (b'{"test_list": ' + b"9" * MEGABYTE + b"}", "no valid JSON"),
    "truncated.jsonl.gz": (gzip.compress(line(HUMAN_EVAL[0]) * 100)[:-30], "no readable gzip"),
    "lying.jsonl.gz": (bytes(LYING), "no readable gzip"),
    "flipped.jsonl.gz": (bytes(FLIPPED), "no readable gzip|no valid JSON|not UTF-8"),
    "zlib.jsonl.gz": (zlib.compress(line(HUMAN_EVAL[0])), "no readable gzip"),
    "empty.jsonl": (b"", "holds no lines"),
    "empty.jsonl.gz": (b"", "holds no lines"),
    "utf-16.jsonl": (line(HUMAN_EVAL[0]).decode().encode("utf-16"), "not UTF-8"),
    "a list.jsonl": (b"[1, 2]\n", "needs a JSON object"),
    "half a pair.jsonl": (line(HUMAN_EVAL[0], prompt="\ud800"), "surrogate"),
    "entry.jsonl": (line(HUMAN_EVAL[0], entry_point="f); import os; (f"), "entry_point"),
    "name.jsonl": (line(HUMAN_EVAL[0], task_id={"a": 1}), "task_id"),
    "no name.jsonl": (json.dumps({k: v for k, v in MBPP[0].items() if k != "task_id"}).encode(), "task_id"),
    "imports.jsonl": (line(MBPP[0], test_imports="import os"), "test_imports"),
    "setup.jsonl": (line(MBPP[0], test_setup_code=[1]), "test_setup_code"),
    "deep code.jsonl": (line(MBPP[0], code="x = " + "-" * 500_000 + "1"), "no Python"),
    "parentheses.jsonl": (line(MBPP[0], code="x = " + "(" * 500_000), "no Python"),
    "long code.jsonl": (line(MBPP[0], code="x = " + "+".join(["1"] * 200_000)), "no Python"),
    "nul.jsonl": (line(MBPP[0], code="x = 1\0"), "no Python"),
}  # fmt: skip

# Address space over what Python with this project takes, and seconds for each file.
CHILD = """
import json, resource, sys, time
from flm.code.problems import load_problems
size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + (900 << 20),) * 2)
found = {}
for name in json.load(sys.stdin):
    start = time.process_time()
    try:
        message = f"no error, {len(load_problems(name))} problems"
    except ValueError as error:
        message = str(error)
    except BaseException as error:
        message = f"TRACEBACK {type(error).__name__}: {error}"
    found[name] = (message, time.process_time() - start)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    for name, (raw, _) in HOSTILE.items():
        (folder / name).write_bytes(raw)
    here = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}  # the folder of the child is that of the files
    names = json.dumps(list(HOSTILE))
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=names, capture_output=True, text=True, cwd=folder, env=here, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", HOSTILE)
def test_one_line_in_bounded_memory(said, name):
    message, seconds = said[name]
    assert not message.startswith(("TRACEBACK", "no error")), message
    assert len(message) < 1000 and "\n" not in message
    assert re.search(HOSTILE[name][1], message), message
    assert name in message and seconds < 20
