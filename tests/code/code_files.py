"""Files in the formats of HumanEval, its infilling sets and MBPP, written here."""

import gzip
import json
from pathlib import Path
from typing import Any

HUMAN_EVAL = [
    {
        "task_id": "HumanEval/0",
        "prompt": 'def double(x: int) -> int:\n    """ Twice x. """\n',
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "METADATA = {}\n\ndef check(candidate):\n    for x in range(5):\n        assert candidate(x) == x + x\n",
    },
    {
        "task_id": "HumanEval/1",
        "prompt": 'import math\n\ndef area(r):\n    return math.pi * r * r\n\n\ndef radius(a):\n    """ Of a circle. """\n',
        "entry_point": "radius",
        "canonical_solution": "    r = math.sqrt(a / math.pi)\n\n    return r\n",
        "test": "def check(candidate):\n    assert math.fabs(area(candidate(3.0)) - 3.0) < 1e-9\n",
    },
    {
        "task_id": "HumanEval/7",
        "prompt": 'from typing import List\n\ndef last(items: List[str]) -> str:\n    """ Of some. """\n',
        "entry_point": "last",
        "canonical_solution": "    for item in items:\n        found = item\n    return found\n",
        "test": 'def check(candidate):\n    assert candidate(["a", "b"]) == "b"\n    assert candidate(["c"]) == "c"\n',
    },
]
INFILLING = [
    {
        **HUMAN_EVAL[2],
        "task_id": "SingleLineInfilling/HumanEval/7/L1",
        "prompt": HUMAN_EVAL[2]["prompt"] + "    for item in items:\n",
        "canonical_solution": "        found = item\n",
        "suffix": "    return found\n",
    }
]
MBPP = [
    {
        "task_id": 2,
        "text": 'Write a function that says """hi""" to a name, with a \\ behind it.',
        "code": "def hi(name):\r\n  return 'hi ' + name + '\\\\'",
        "test_list": ["assert hi('you') == 'hi you\\\\'"],
        "test_setup_code": "",
        "challenge_test_list": [],
    },
    {
        "task_id": 11,
        "text": "Write a function to measure the height of a tree.",
        "code": "class Node:\r\n  def __init__(self, v):\r\n    self.v, self.left = v, None\r\n\r\ndef height(n):\r\n"
        "  return 0 if n is None else 1 + height(n.left)",
        "test_list": ["assert height(root) == 2", "assert height(None) == 0"],
        "test_setup_code": "root = Node(1)\r\nroot.left = Node(2)",
        "challenge_test_list": [],
    },
    {
        "task_id": 12,
        "text": "Write a function to sort in place.",
        "code": "import math\ndef sort(a):\n  a.sort()\n",
        "test_list": ["a = [3, 1]\nsort(a)\nassert a == [1, 3]", "assert math.floor(1.5) == 1"],
        "test_setup_code": "",
        "challenge_test_list": [],
    },
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path
