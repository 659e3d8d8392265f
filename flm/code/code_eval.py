"""mode=code_eval: programs written by a checkpoint, run against the tests of a benchmark."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import MinLen
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from flm.code.judging import Answers, check_references, judge, summary, write_verdicts
from flm.code.problems import Hole, Problem, hide_lines, load_problems
from flm.code.sandbox import Limits, Sandbox, Verdict
from flm.data.pretrained_tokenizer import ChatTemplate
from flm.data.tokenizers import Tokenizer
from flm.language_model import LanguageModel
from flm.ranges import DIFFERENT, Count, Existing, Few, Index, Share, Text
from flm.samplers.canvas import Pieces, positions
from flm.tasks.evaluation import EvalOptions, load_model
from flm.tasks.fillings import Writer, check_hole_is_bounded, padding_of
from flm.tasks.machine import Machine
from flm.tasks.processes import Team, team_of
from flm.tasks.run import Run
from flm.tasks.samples import Request


@dataclass(frozen=True)
class CodeEvalOptions:
    """The `code_eval` config; keys explained there."""

    path: Existing | None = None
    first: Index | None = None
    last: Index | None = None
    limit: Count | None = None
    skip: Sequence[Text | Index] = ()
    answers: Literal["model", "reference", "empty"] = "model"
    samples: Few = 1
    k: Annotated[Sequence[Count], MinLen(1), DIFFERENT] = (1, 10, 100)
    shots: Index = 0
    new_tokens: Literal["reference"] | Count | None = None
    hole_tokens: Literal["reference"] | Count = "reference"
    hidden_lines: Share | None = None
    chat: bool = False
    workers: Count | None = None
    limits: Limits = Limits()


def code_eval(config: DictConfig) -> dict[str, Any]:
    """Writes run_dir/samples-<steps>.jsonl and code_eval.json; prints a table.

    A problem that cannot be put to the model (too long, or of characters its tokenizer lacks) counts as failed, and is counted.
    Of several processes each writes and judges its share; the first one does all else, and the others return nothing.
    """
    run = Run(config)
    wanted = run.options(CodeEvalOptions, "code_eval")
    problems, sandbox = chosen_problems(wanted, run["seed"]), Sandbox(wanted.limits)
    machine = Machine.of(run["trainer"], run["model"]) if wanted.answers == "model" else None
    with team_of(torch.device("cpu") if machine is None else machine.device) as team:
        sheet = Sheet(problems, sandbox, wanted, run.folder, team)
        results: dict[str, Any] = {"kind": "code_eval", "sandbox": sandbox.describe(), "problems": len(problems)}
        if machine is None:
            results = run.provenance() | results | sheet.without_model()
        else:
            lm = load_model(run.options(EvalOptions, "eval"), machine)
            request = Request.of(run["sampling"], run["loader"]["eval_batch_size"], run["seed"])
            request.set_options(lm)
            results = run.about("code_eval", lm) | results | {"options": lm.options} | sheet.of_model(lm, request)
        if not team.is_first:
            return {}
        run.write_json("code_eval.json", results)
        sheet.console.print(table_of(results))
        sheet.console.print(f"samples and results: {run.folder}")
        return results


class Sheet:
    """What is asked, and what the answers to it come to. The answers' files are written by the first process."""

    def __init__(self, problems: list[Problem], sandbox: Sandbox, wanted: CodeEvalOptions, folder: Path, team: Team):
        self.problems, self.sandbox, self.wanted, self.folder, self.team = problems, sandbox, wanted, folder, team
        self.console = Console(quiet=not team.is_first)

    def without_model(self) -> dict[str, Any]:
        """Of the references, or of nothing."""
        references = [[problem.solution] for problem in self.problems]
        verdicts = self._judged(self.problems, references)
        found = check_references(self.problems, verdicts)
        answers = references
        if self.wanted.answers == "empty":
            answers = [[[""] * len(problem.solution)] for problem in self.problems]
            verdicts = self._judged(self.problems, answers)
        return {"references": found, "by_steps": {self.wanted.answers: self._scored(answers, verdicts, self.wanted.answers, 1)}}

    def of_model(self, lm: LanguageModel, request: Request) -> dict[str, Any]:
        """By numbers of sampling steps."""
        wanted, padding = self.wanted, padding_of(lm)
        if any(problem.is_continuation for problem in self.problems):
            check_hole_is_bounded(padding, wanted.new_tokens, "code_eval.new_tokens")
        writer = Writer(lm, request.batch_size, request.seed, padding, self.team)
        sizes, end = (wanted.new_tokens, wanted.hole_tokens), int(padding is not None)
        template = ChatTemplate.of(lm.tokenizer) if wanted.chat else None
        requests = [request_of(problem, lm.tokenizer, lm.length, *sizes, end, template) for problem in self.problems]
        reasons = Counter(asked for asked in requests if isinstance(asked, str))
        for reason, count in reasons.items():
            self.console.print(f"warning: {count} of {len(requests)} problems count as failed: {reason}", soft_wrap=True)
        asked = [p for p, pieces in zip(self.problems, requests, strict=True) if not isinstance(pieces, str)]
        references = check_references(asked, self._judged(asked, [[problem.solution] for problem in asked]))
        by_steps = {}
        for steps in writer.steps(request.steps):
            written = iter(writer([pieces for pieces in requests if not isinstance(pieces, str)], wanted.samples, steps))
            answers: list[list[list[str]]] = [
                [] if isinstance(pieces, str) else [self._cut(problem, texts) for texts in next(written)]
                for problem, pieces in zip(self.problems, requests, strict=True)
            ]
            verdicts = self._judged(self.problems, answers)
            by_steps[str(steps)] = self._scored(answers, verdicts, str(steps), wanted.samples)
        return {"not_asked": dict(reasons), "references": references, "by_steps": by_steps}

    @staticmethod
    def _cut(problem: Problem, texts: list[str]) -> list[str]:
        return [problem.cut(text) for text in texts] if problem.is_continuation else texts

    def _judged(self, problems: list[Problem], answers: Answers) -> list[list[Verdict]]:
        return judge(problems, answers, self.sandbox, self.wanted.workers, self.team)

    def _scored(self, answers: Answers, verdicts: list[list[Verdict]], name: str, samples: int) -> dict[str, Any]:
        path = self.folder / f"samples-{name}.jsonl"
        if self.team.is_first:
            write_verdicts(path, self.problems, answers, verdicts, samples)
        return {"file": path.name, **summary(self.problems, answers, verdicts, self.wanted.k, samples)}


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
    skipped = set(map(str, wanted.skip))
    if unknown := skipped - {problem.task_id for problem in problems}:
        raise ValueError(
            f"code_eval.skip: {wanted.path} holds no {', '.join(sorted(unknown))} (within code_eval.first and last)"
        )
    problems = [problem for problem in problems if problem.task_id not in skipped]
    if not problems:
        raise ValueError(f"code_eval.first={wanted.first}, last={wanted.last}: {wanted.path} holds no such task")
    if wanted.limit is not None:
        count = min(wanted.limit, len(problems))
        problems = [problems[index * len(problems) // count] for index in range(count)]
    if wanted.chat and wanted.hidden_lines is not None:
        raise ValueError("code_eval.chat=true asks for whole programs: set code_eval.hidden_lines=null")
    problems = problems if wanted.hidden_lines is None else hide_lines(problems, wanted.hidden_lines, seed)
    return [problem.as_question() for problem in problems] if wanted.chat else problems


def request_of(
    problem: Problem,
    tokenizer: Tokenizer,
    length: int,
    new_tokens: Any,
    hole_tokens: Any,
    end: int = 0,
    template: ChatTemplate | None = None,
) -> Pieces | str:
    """A problem as token ids and holes, or why it cannot be put to a model of sequences of `length`.

    Args:
        new_tokens, hole_tokens: as in the group `code_eval`.
        end: positions that a text whose end is given takes beside its own.
        template: how a problem's question is put to the model.
    """
    pieces: Sequence[str | Hole] = problem.pieces
    if template is not None:
        pieces = (template([{"role": "user", "content": str(problem.question)}]), *problem.pieces[1:])
    try:
        given = [
            tokenizer.encode(piece.text)
            if isinstance(piece, Hole)
            else tokenizer.encode_exactly(piece, problem.task_id, goes_on=place > 0)
            for place, piece in enumerate(pieces)
        ]
    except ValueError:
        return "the tokenizer cannot write them"
    if problem.is_continuation:
        left = length - len(given[0])
        sizes = {None: left, "reference": len(given[1]) + 1}  # EOS
        size = sizes.get(new_tokens, new_tokens)
        return [given[0], size] if 1 <= size <= left else f"longer than model.length={length}"
    sizes = [len(ids) if hole_tokens == "reference" else hole_tokens for ids in given]
    filled = [size if isinstance(p, Hole) else ids for p, ids, size in zip(problem.pieces, given, sizes, strict=True)]
    return filled if positions(filled) + end <= length else f"longer than model.length={length}"


def table_of(results: dict[str, Any]) -> Table:
    table = Table(title=f"{results['problems']} problems, %")
    ks = list(next(iter(results["by_steps"].values()))["pass_at"])
    for heading in ("steps", *(f"pass@{k}" for k in ks), *(f"compiled@{k}" for k in ks), "exact match", "suspicious"):
        table.add_column(heading, justify="right")
    for steps, entry in results["by_steps"].items():
        found = [entry[name].get(k) for name in ("pass_at", "compiled_at") for k in ks] + [entry["exact_match"]]
        scores = ("" if estimate is None else f"{100 * estimate['mean']:.1f}" for estimate in found)
        table.add_row(steps, *scores, str(entry["suspicious"]))
    return table
