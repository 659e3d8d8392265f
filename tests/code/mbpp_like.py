"""Tasks of the kinds that MBPP has, from mbpp_like.txt, as rows of its files; each with a wrong program beside it."""

import re
from pathlib import Path
from typing import Any


def _read() -> list[tuple[dict[str, Any], str]]:
    found = []
    for index, block in enumerate(Path(__file__).with_suffix(".txt").read_text().split("=== ")[1:]):
        asked, wrong, rest = block.split("\n", 2)
        code, rest = rest.split("\n--- setup\n")
        setup, tests = rest.split("--- tests\n")
        old, new = re.fullmatch("wrong: (.*) => (.*)", wrong).groups()
        assert old in code, asked
        lines = setup.splitlines()
        row = {
            "task_id": 1001 + index,
            "prompt": f"Write a function for this: {asked}.",
            "code": code.replace("\n", "\r\n"),
            "test_imports": [line for line in lines if line.startswith(("import ", "from "))],
            "test_setup_code": "\r\n".join(line for line in lines if not line.startswith(("import ", "from "))),
            "test_list": tests.strip("\n").split("\n\n"),
            "challenge_test_list": [],
        }
        found.append((row, code.replace(old, new)))
    return found


ROWS, WRONG = map(list, zip(*_read(), strict=True))
