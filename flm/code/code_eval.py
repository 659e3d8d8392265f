"""mode=code_eval: programs written by a checkpoint, run against the tests of a benchmark."""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from flm.atomic import write_text
from flm.code.problems import Hole, Problem, hide_lines, load_problems
from flm.code.sandbox import Limits, Sandbox, Verdict
from flm.data.tokenizers import Tokenizer
from flm.measures.estimate import Estimate
from flm.measures.pass_at_k import mean_pass_at_k
from flm.ranges import DIFFERENT, Count, Index, Share, Text
from flm.tasks.eval_options import EvalOptions
from flm.tasks.fillings import Pieces, Writer, check_hole_is_bounded, padding_of, positions
from flm.tasks.machine import Machine
from flm.tasks.model import load_model
from flm.tasks.processes import check_alone
from flm.tasks.run import Run
from flm.tasks.samples import Request

Answers = list[list[list[str]]]  # [problem][sample][hole]


@dataclass(frozen=True)
class CodeEvalOptions:
    """The `code_eval` config; keys explained there."""

    path: Text | None = None
    first: Index | None = None
    last: Index | None = None
    limit: Count | None = None
    answers: Literal["model", "reference", "empty"] = "model"
    samples: Count = 1
    k: Annotated[Sequence[Count], MinLen(1), DIFFERENT] = (1, 10, 100)
    shots: Index = 0
    new_tokens: Literal["reference"] | Count | None = None
    hole_tokens: Literal["reference"] | Count = "reference"
    hidden_lines: Share | None = None
    workers: Count | None = None
    limits: Limits = Limits()


def code_eval(config: DictConfig) -> dict[str, Any]:
    """Writes run_dir/samples-<steps>.jsonl and code_eval.json; prints a table.

    A problem that cannot be put to the model (too long, or of characters its tokenizer lacks) counts as failed, and is counted.
    """
    check_alone("code_eval")
    run, console = Run.of(config), Console()
    wanted = run.options(CodeEvalOptions, "code_eval")
    problems, sandbox = chosen_problems(wanted, run["seed"]), Sandbox(wanted.limits)
    results: dict[str, Any] = {"kind": "code_eval", "sandbox": sandbox.describe(), "problems": len(problems), "by_steps": {}}

    def judged(answers: Answers, name: str) -> dict[str, Any]:
        return judge(problems, answers, sandbox, wanted.workers, list(wanted.k), run.folder / f"samples-{name}.jsonl")

    if wanted.answers == "model":
        request = Request.of(run["sampling"], run["loader"]["eval_batch_size"], run["seed"])
        lm = load_model(run.options(EvalOptions, "eval"), Machine.of(run["trainer"], run["model"]))
        request.set_options(lm)
        padding = padding_of(lm)
        if any(problem.is_continuation for problem in problems):
            check_hole_is_bounded(padding, wanted.new_tokens, "code_eval.new_tokens")
        writer = Writer(lm, request.batch_size, request.seed, padding)
        sizes, end = (wanted.new_tokens, wanted.hole_tokens), int(padding is not None)
        requests = [request_of(problem, lm.tokenizer, lm.length, *sizes, end) for problem in problems]
        reasons = Counter(asked for asked in requests if isinstance(asked, str))
        results = run.about("code_eval", lm) | results | {"options": lm.options, "not_asked": dict(reasons)}
        for reason, count in reasons.items():
            console.print(f"warning: {count} of {len(problems)} problems count as failed: {reason}", soft_wrap=True)
        for steps in writer.steps(request.steps):
            written = iter(writer([asked for asked in requests if not isinstance(asked, str)], wanted.samples, steps))
            answers = [
                [[""] * len(problem.solution)] * wanted.samples if isinstance(asked, str) else next(written)
                for problem, asked in zip(problems, requests, strict=True)
            ]
            answers = [
                [[p.cut(text) for text in texts] if p.is_continuation else texts for texts in given]
                for p, given in zip(problems, answers, strict=True)
            ]
            results["by_steps"][str(steps)] = judged(answers, str(steps))
    else:
        answers = [[p.solution if wanted.answers == "reference" else [""] * len(p.solution)] for p in problems]
        results = run.provenance() | results
        results["by_steps"][wanted.answers] = judged(answers, wanted.answers)
    run.write_json("code_eval.json", results)
    console.print(table_of(results))
    console.print(f"samples and results: {run.folder}")
    return results


def chosen_problems(wanted: CodeEvalOptions, seed: int) -> list[Problem]:
    """What `code_eval` asks for; problems without a number in their name are within no bounds."""
    if wanted.path is None:
        raise ValueError("code_eval.path is not set: name a file of problems, HumanEval.jsonl.gz for one")
    if not [k for k in wanted.k if 1 <= k <= wanted.samples]:
        raise ValueError(f"code_eval.k={list(wanted.k)}: none of them is in [1, code_eval.samples={wanted.samples}]")
    problems = load_problems(wanted.path, wanted.shots)
    if wanted.first is not None or wanted.last is not None:
        first, last = (bound if bound is not None else other for bound, other in ((wanted.first, 0), (wanted.last, 1 << 62)))
        problems = [p for p in problems if (n := re.search(r"\d+$", p.task_id)) and first <= int(n.group()) <= last]
    if not problems:
        raise ValueError(f"code_eval.first={wanted.first}, last={wanted.last}: {wanted.path} holds no such task")
    if wanted.limit is not None:
        count = min(wanted.limit, len(problems))
        problems = [problems[index * len(problems) // count] for index in range(count)]
    return problems if wanted.hidden_lines is None else hide_lines(problems, wanted.hidden_lines, seed)


def request_of(
    problem: Problem, tokenizer: Tokenizer, length: int, new_tokens: Any, hole_tokens: Any, end: int = 0
) -> Pieces | str:
    """A problem as token ids and holes, or why it cannot be put to a model of sequences of `length`.

    Args:
        new_tokens, hole_tokens: as in the group `code_eval`.
        end: positions that a text whose end is given takes beside its own.
    """
    try:
        given = [
            tokenizer.encode(piece.text) if isinstance(piece, Hole) else tokenizer.encode_exactly(piece, problem.task_id)
            for piece in problem.pieces
        ]
    except ValueError:
        return "the tokenizer cannot write them"
    if problem.is_continuation:
        left = length - len(given[0])
        sizes = {None: left, "reference": len(given[1]) + 1}  # EOS
        size = sizes.get(new_tokens, new_tokens)
        return [given[0], size] if 1 <= size <= left else f"longer than model.length={length}"
    sizes = [len(ids) if hole_tokens == "reference" else hole_tokens for ids in given]
    pieces = [size if isinstance(p, Hole) else ids for p, ids, size in zip(problem.pieces, given, sizes, strict=True)]
    return pieces if positions(pieces) + end <= length else f"longer than model.length={length}"


def judge(
    problems: list[Problem], answers: Answers, sandbox: Sandbox, workers: int | None, ks: list[int], path: Path
) -> dict[str, Any]:
    """Verdicts on all answers, written out; their summary."""
    programs = [p.program(texts) for p, given in zip(problems, answers, strict=True) for texts in given]
    found = iter(sandbox.run_all(programs, workers or len(os.sched_getaffinity(0))))
    verdicts = [[next(found) for _ in given] for given in answers]
    lines = [
        {"task_id": p.task_id, "completion": "".join(texts) if len(texts) == 1 else texts, "passed": verdict.passed,
         "result": verdict.stage, "detail": verdict.detail}
        for p, given, judged in zip(problems, answers, verdicts, strict=True)
        for texts, verdict in zip(given, judged, strict=True)
    ]  # fmt: skip
    write_text(path, "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines))
    return {"file": path.name, **summary(problems, answers, verdicts, ks)}


def summary(problems: list[Problem], answers: Answers, verdicts: list[list[Verdict]], ks: list[int]) -> dict[str, Any]:
    """pass@k and compiled@k over problems, the share of answers that are the reference's to the letter, and their ends."""
    exact = [
        sum([t.strip() for t in texts] == [t.strip() for t in p.solution] for texts in given) / len(given)
        for p, given in zip(problems, answers, strict=True)
    ]
    passed = mean_pass_at_k([[verdict.passed for verdict in judged] for judged in verdicts], ks)
    compiled = mean_pass_at_k([[verdict.compiled for verdict in judged] for judged in verdicts], ks)
    return {
        "samples": len(answers[0]),
        "pass_at": {k: vars(estimate) for k, estimate in passed.items()},
        "compiled_at": {k: vars(estimate) for k, estimate in compiled.items()},
        "exact_match": vars(Estimate.of(exact)),
        "outcomes": dict(Counter(verdict.stage for judged in verdicts for verdict in judged)),
    }


def table_of(results: dict[str, Any]) -> Table:
    table = Table(title=f"{results['problems']} problems, %")
    ks = list(next(iter(results["by_steps"].values()))["pass_at"])
    for heading in ("steps", *(f"pass@{k}" for k in ks), *(f"compiled@{k}" for k in ks), "exact match"):
        table.add_column(heading, justify="right")
    for steps, entry in results["by_steps"].items():
        means = [entry[name][k]["mean"] for name in ("pass_at", "compiled_at") for k in ks] + [entry["exact_match"]["mean"]]
        table.add_row(steps, *(f"{100 * mean:.1f}" for mean in means))
    return table
