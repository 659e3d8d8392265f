"""What verdicts come to, and problems that are broken."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed
from code_files import HUMAN_EVAL, MBPP, write
from two_processes import free_ports, run_two

from flm.code.cell import seccomp
from flm.code.judging import check_references, judge, summary, write_verdicts
from flm.code.problems import Hole, Problem, load_problems
from flm.code.sandbox import Limits, Sandbox, Verdict
from flm.tasks.processes import Team

if not seccomp.supported():
    pytest.skip("generated code is only run where it can be confined", allow_module_level=True)

SPLITS = {
    "a": [("  x = 1\n", "  return x\n"), ("  x =", " 1\n  return x\n")],
    "b": [("  return", " 2\n"), ("", "  return 2\n")],
}
BROKEN = {
    "no python": ({"test": "def check(candidate:\n"}, "broken"),
    "wrong": ({"canonical_solution": "    return 3 * x\n"}, "failed"),
    "a name that is not there": ({"test": "def check(candidate):\n    assert candidate(1) == two\n"}, "failed"),
    "no such function": ({"entry_point": "triple"}, "failed"),
}


@pytest.fixture(scope="module")
def sandbox():
    return Sandbox(Limits(cpu_seconds=1))


def references(sandbox, problems):
    return judge(problems, [[problem.solution] for problem in problems], sandbox, 2, Team())


@pytest.mark.parametrize("name", BROKEN)
def test_broken_problems_are_an_error(sandbox, tmp_path, name):
    changed, stage = BROKEN[name]
    rows = [{**HUMAN_EVAL[0], **changed, "task_id": "bad/7"}, *HUMAN_EVAL[1:]]
    problems = load_problems(write(tmp_path / "x.jsonl", rows))
    with pytest.raises(ValueError, match=rf"1 of 3 problems are broken.*bad/7: {stage}.*code_eval\.skip") as told:
        check_references(problems, references(sandbox, problems))
    assert "\n" not in str(told.value)


def test_slow_and_suspicious_references_are_named(sandbox, tmp_path):
    slow = {**HUMAN_EVAL[0], "task_id": "slow/1", "canonical_solution": "    while True:\n        pass\n"}
    seeded = (
        "def check(candidate):\n    import random\n    random.seed(0)\n    assert candidate(0) == random.Random(0).random()\n"
    )
    odd = {
        **HUMAN_EVAL[0],
        "task_id": "odd/2",
        "test": seeded,
        "canonical_solution": "    import random\n    return random.random()\n",
    }
    problems = load_problems(write(tmp_path / "x.jsonl", [slow, odd, HUMAN_EVAL[2]]))
    assert check_references(problems, references(sandbox, problems)) == {"timeout": ["slow/1"], "suspicious": ["odd/2"]}


def test_compiled_counts_what_was_asked(tmp_path):
    problems = load_problems(write(tmp_path / "x.jsonl", HUMAN_EVAL))
    answers = [[["    return 2 * x\n"], ["    return ("]], [["x"], ["y"]], []]
    verdicts = [[Verdict("passed", suspicious=True), Verdict("syntax")], [Verdict("failed"), Verdict("died")], []]
    found = summary(problems, answers, verdicts, [1, 2, 5], 2)
    assert {k: v["mean"] for k, v in found["pass_at"].items()} == pytest.approx({"1": 1 / 6, "2": 1 / 3})
    assert {k: v["mean"] for k, v in found["compiled_at"].items()} == pytest.approx({"1": 3 / 4, "2": 1})
    assert found["compiled_at"]["1"]["count"] == 2 and found["exact_match"]["mean"] == pytest.approx(1 / 6)
    assert found["suspicious"] == 1 and found["outcomes"] == {"passed": 1, "syntax": 1, "failed": 1, "died": 1, "not asked": 2}
    write_verdicts(tmp_path / "lines.jsonl", problems, answers, verdicts, 2)
    lines = (tmp_path / "lines.jsonl").read_text().splitlines()
    assert len(lines) == 6 and '"suspicious": true' in lines[0] and '"not asked"' in lines[5]
    nothing = summary(problems, [[], [], []], [[], [], []], [1], 1)
    assert nothing["pass_at"]["1"]["mean"] == 0 and nothing["compiled_at"] == {}


def test_holes_in_one_function_count_as_one_for_the_error():
    """Two functions, of one both holes are right and of the other none: 50 +- 50%, as of two problems and not of four."""
    rights = [
        Problem(f"{name}/{i}", ("def f():\n", Hole(a), Hole(b)), "", ())
        for name in "ab"
        for i, (a, b) in enumerate(SPLITS[name])
    ]
    answers = [[p.solution] for p in rights]
    verdicts = [[Verdict("passed" if p.task_id[0] == "a" else "failed")] for p in rights]
    assert len({p.source(p.solution) for p in rights}) == 2
    found = summary(rights, answers, verdicts, [1], 1)["pass_at"]["1"]
    assert (found["mean"], found["standard_error"]) == (0.5, pytest.approx(0.5))


def _member(rank: int, port: int, path: str, folder: Path) -> None:
    os.environ["MASTER_PORT"] = str(port)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=100))
    team = Team(rank, 2, torch.distributed.group.WORLD)
    torch.save(_verdicts(path, team), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def _verdicts(path: str, team: Team) -> list[list[Verdict]]:
    problems = load_problems(path)
    answers = [[problem.solution, ["    return ("], [""], ["    return 1\n"]] for problem in problems]
    return judge(problems, answers[:-1] + [[]], Sandbox(), 1, team)


def test_several_processes_judge_as_one_does(tmp_path):
    path = str(write(tmp_path / "x.jsonl", [*HUMAN_EVAL, HUMAN_EVAL[0]]))
    run_two(_member, free_ports(1)[0], path, tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    stages = [[verdict.stage for verdict in row] for row in _verdicts(path, Team())]
    assert all([[verdict.stage for verdict in row] for row in found[rank]] == stages for rank in (0, 1))
    assert stages[3] == [] and stages[0] == ["passed", "syntax", "failed", "failed"]


def test_mbpp_references_are_sound(sandbox, tmp_path):
    problems = load_problems(write(tmp_path / "x.jsonl", MBPP))
    assert check_references(problems, references(sandbox, problems)) == {"timeout": [], "suspicious": []}
