"""The sandbox's verdicts on ordinary programs are those of plain `exec`, and none of them is called suspicious."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from code_files import write
from legitimate import LEGITIMATE
from mbpp_like import ROWS, WRONG

from flm.code.cell import seccomp
from flm.code.problems import load_problems
from flm.code.sandbox import Program, Sandbox

if not seccomp.supported():
    pytest.skip("generated code is only run where it can be confined", allow_module_level=True)

HUMAN_EVAL = next((f for up in Path(__file__).parents if (f := up / "shared/data/code/HumanEval.jsonl.gz").exists()), None)


@pytest.fixture(scope="module")
def sandbox():
    return Sandbox()


@pytest.fixture(scope="module")
def plain_of(tmp_path_factory):
    """Of pairs of program and test: whether plain `exec` lets them pass, each in a process of its own."""
    code = (
        "import json, os, sys; from legitimate import plain; cases = json.load(sys.stdin); out = os.dup(1); os.dup2(2, 1)\n"
        "found = []\n"
        "for source, test in cases:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        os._exit(0 if plain(source, test) == 'passed' else 1)\n"
        "    found.append(os.waitpid(child, 0)[1] == 0)\n"
        "os.write(out, json.dumps(found).encode())"
    )

    def passed(cases):
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); {code}"],
            input=json.dumps(cases), capture_output=True, text=True, cwd=tmp_path_factory.mktemp("plain"), check=True,
        )  # fmt: skip
        return json.loads(done.stdout)

    return passed


@pytest.fixture(scope="module")
def plain(plain_of):
    """What plain `exec` makes of each program and of its wrong variant."""
    found = plain_of([[source, item.test] for item in LEGITIMATE for source in (item.source, item.wrong)])
    return dict(zip((item.name for item in LEGITIMATE), zip(found[::2], found[1::2], strict=True), strict=True))


def test_tasks_as_mbpp_has_them_are_judged_as_by_exec(sandbox, plain_of, tmp_path):
    """Program, setup code and asserts in one `exec`, as the benchmark is published, through the reader of its files."""
    problems = load_problems(write(tmp_path / "mbpp.jsonl", ROWS))
    assert len(problems) >= 30
    answers = [[row["code"].replace("\r\n", "\n"), wrong] for row, wrong in zip(ROWS, WRONG, strict=True)]
    tests = ["\n".join([*row["test_imports"], row["test_setup_code"], *row["test_list"]]) for row in ROWS]
    expected = plain_of(
        [[source, test.replace("\r\n", "\n")] for pair, test in zip(answers, tests, strict=True) for source in pair]
    )
    verdicts = sandbox.run_all([p.program([source]) for p, pair in zip(problems, answers, strict=True) for source in pair], 2)
    assert [verdict.passed for verdict in verdicts] == expected == [True, False] * len(ROWS)
    assert not [p.task_id for p, verdict in zip(problems, verdicts[::2], strict=True) if verdict.suspicious]


def test_right_programs_pass_and_wrong_ones_fail_as_in_exec(sandbox, plain):
    assert len(LEGITIMATE) >= 76
    right = sandbox.run_all([Program(*item.program(item.source)) for item in LEGITIMATE], 2)
    wrong = sandbox.run_all([Program(*item.program(item.wrong)) for item in LEGITIMATE], 2)
    assert set(plain.values()) == {(True, False)}
    for item, on_right, on_wrong in zip(LEGITIMATE, right, wrong, strict=True):
        assert (on_right.passed, on_wrong.passed) == (True, False), (item.name, on_right, on_wrong)
    assert not {item.name: verdict for item, verdict in zip(LEGITIMATE, right, strict=True) if verdict.suspicious}


def test_answers(sandbox):
    tiny = "def simple_math_problem():\n    apples = 3 * 4\n    print('eaten', 2)\n    return (apples - 2) / 4\n"
    questions = {
        (tiny, "simple_math_problem()"): ("answered", 2.5, "eaten 2\n"),
        ("print(sum(range(5)))", None): ("answered", None, "10\n"),
        ("import numpy as np\nx = int(np.arange(3).sum())", "[x, {'a': (1, None)}]"): ("answered", [3, {"a": (1, None)}], ""),
        ("def f(:", "f()"): ("syntax", None, ""),
        ("1 / 0", "3"): ("raised", None, ""),
        ("", "2**70"): ("answered", 2**70, ""),
        ("def f(): return object()", "f()"): ("failed", None, ""),
        ("import os\nprint('x', flush=True)", "os._exit(0)"): ("died", None, ""),
        ("print('y' * 10**6)", "5"): ("answered", 5, "y" * 16384),
        ("class F(float):\n    def __eq__(self, other): return True", "F(2)"): ("answered", 2.0, ""),
        ("", "'z' * 10**7"): ("died", None, ""),
    }  # fmt: skip
    answers = sandbox.answers(list(questions), workers=2)
    assert [(answer.stage, answer.value, answer.printed) for answer in answers] == list(questions.values())
    assert type(answers[9].value) is float


def test_namespace_of_plain_exec(sandbox):
    """As in the benchmarks' own harnesses: no main program, and what exec does not offer is not there either."""
    test = "assert f() == (__name__, [])"
    source = "seen = []\nif __name__ == '__main__':\n    seen.append(1)\ndef f():\n    return __name__, seen"
    assert sandbox.run(Program(source, test, ("f",))).passed
    program = Program("import pickle\nclass A: pass\ndef f():\n    return pickle.dumps(A())", "f()", ("f",))
    assert sandbox.run(program).stage == "failed"


@pytest.mark.skipif(HUMAN_EVAL is None, reason="the data are not here")
def test_human_eval(sandbox):
    problems = load_problems(HUMAN_EVAL)
    right = sandbox.run_all([problem.program(problem.solution) for problem in problems], 2)
    assert len(right) == 164 and all(verdict.passed and not verdict.suspicious for verdict in right)
    assert not any(verdict.passed for verdict in sandbox.run_all([problem.program([""]) for problem in problems], 2))
