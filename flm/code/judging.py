"""Answers to programming problems, judged: verdicts on them, what these come to, and whether the problems are sound."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flm.atomic import write_text
from flm.code.problems import Problem
from flm.code.sandbox import Sandbox, Verdict
from flm.measures.estimate import Estimate, mean_pass_at_k
from flm.tasks.processes import Team

Answers = Sequence[Sequence[Sequence[str]]]  # [problem][sample][hole]; no samples where a problem was not asked
NOT_ASKED = Verdict("not asked")
_SHOWN = 3


def judge(
    problems: Sequence[Problem], answers: Answers, sandbox: Sandbox, workers: int | None, team: Team
) -> list[list[Verdict]]:
    """Verdicts on all answers, of which each process of the team gives its share; all of them have all.

    Args:
        workers: programs that a process runs at once; None: one per core of the machine, shared among its processes.
    """
    programs = [p.program(texts) for p, given in zip(problems, answers, strict=True) for texts in given]
    if workers is None:
        workers = max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    found = iter(team.all_of(sandbox.run_all([programs[index] for index in team.share(len(programs))], workers)))
    return [[next(found) for _ in given] for given in answers]


def check_references(problems: Sequence[Problem], verdicts: Sequence[Sequence[Verdict]]) -> dict[str, list[str]]:
    """Which references take more than the time there is, and which are suspicious themselves, so that on the answers to these
    problems suspicion says nothing.

    Raises:
        ValueError: a problem's own solution does not pass its test: the problem is broken, whatever is answered.
    """
    judged = [(problem.task_id, verdict) for problem, (verdict,) in zip(problems, verdicts, strict=True)]
    broken = [(name, verdict) for name, verdict in judged if not verdict.passed and verdict.stage != "timeout"]
    if broken:
        shown = "; ".join(
            f"{name}: {verdict.stage}, {' '.join(verdict.detail.split())}"[:150] for name, verdict in broken[:_SHOWN]
        )
        raise ValueError(
            f"code_eval.path: {len(broken)} of {len(problems)} problems are broken, their own solution does not pass ({shown}"
            f"{'; ...' if len(broken) > _SHOWN else ''}): mend the file, or leave them out with code_eval.skip=[...]"
        )
    return {
        "timeout": [name for name, verdict in judged if verdict.stage == "timeout"],
        "suspicious": [name for name, verdict in judged if verdict.suspicious],
    }


def write_verdicts(
    path: Path, problems: Sequence[Problem], answers: Answers, verdicts: Sequence[Sequence[Verdict]], samples: int
) -> None:
    """A line for each answer, in the format of human-eval's samples; `samples` empty ones where a problem was not asked."""
    lines = [
        {"task_id": p.task_id, "completion": "".join(texts) if len(texts) == 1 else list(texts), "passed": verdict.passed,
         "suspicious": verdict.suspicious, "result": verdict.stage, "detail": verdict.detail}
        for p, given, judged in zip(problems, answers, verdicts, strict=True)
        for texts, verdict in zip(given or [[""]] * samples, judged or [NOT_ASKED] * samples, strict=True)
    ]  # fmt: skip
    write_text(path, "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines))


def summary(
    problems: Sequence[Problem], answers: Answers, verdicts: Sequence[Sequence[Verdict]], ks: Sequence[int], samples: int
) -> dict[str, Any]:
    """pass@k over all problems, compiled@k over those that were asked, the share of answers that are the reference's to the
    letter, how many answers are suspicious, and how all ended.

    Problems that are holes in one program, as infilling sets have them, are not independent: errors are over programs.

    Args:
        samples: to each problem that was asked.
    """
    exact = [
        sum([t.strip() for t in texts] == [t.strip() for t in p.solution] for texts in given) / max(1, len(given))
        for p, given in zip(problems, answers, strict=True)
    ]
    programs = [p.source(p.solution) for p in problems]
    passed = mean_pass_at_k([[v.passed for v in judged] or [False] * samples for judged in verdicts], ks, programs)
    asked = [(program, [v.compiled for v in judged]) for program, judged in zip(programs, verdicts, strict=True) if judged]
    compiled = mean_pass_at_k([row for _, row in asked] or [[]], ks, [program for program, _ in asked])
    return {
        "samples": samples,
        "pass_at": {k: vars(estimate) for k, estimate in passed.items()},
        "compiled_at": {k: vars(estimate) for k, estimate in compiled.items()},
        "exact_match": vars(Estimate.grouped(exact, programs)),
        "suspicious": sum(verdict.suspicious for judged in verdicts for verdict in judged),
        "outcomes": dict(Counter(verdict.stage for judged in verdicts for verdict in judged or [NOT_ASKED] * samples)),
    }
