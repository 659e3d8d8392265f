"""Programming problems with tests: HumanEval, its infilling sets and MBPP, from local JSON Lines.

A file is told by the keys of its objects:

    HumanEval   task_id, prompt, canonical_solution, test, entry_point        (arXiv 2107.03374)
    infilling   the same, and suffix                                          (arXiv 2207.14255)
    MBPP        task_id, text (or prompt), code, test_list                    (arXiv 2108.07732)

MBPP's challenge_test_list is not read: it is not among the tests of its published numbers.
"""

import ast
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flm.code.sandbox import Program
from flm.data.corpora.records import records, text_of
from flm.draws import mix_seed

# Where a continuation ends at the latest: what follows is a new top-level statement (as published for each set).
HUMAN_EVAL_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
MBPP_STOPS = ("\nassert", '\n"""', "\nprint", "\nif __name__", "\n#")
ASK = "Write the Python program that begins like this. Answer with the whole program in one code block."
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})([^`]*)")  # indentation, marks, what is said of the block
LINE_BYTES, TOTAL_BYTES, MAX_PROBLEMS = 16 << 20, 64 << 20, 20_000  # of a file of problems, unpacked


@dataclass(frozen=True)
class Hole:
    """Text to be written; `text` is the reference's."""

    text: str


@dataclass(frozen=True)
class Problem:
    """A program with holes, and how it is tested.

    Attributes:
        task_id: the file's.
        pieces: given text and holes, in order.
        test, remote: as in `Program`.
        stops: where a continuation is cut, at the first of them.
        question: what a chat model is asked, whose answer is the one hole; None: the pieces are put to the model as they are.
    """

    task_id: str
    pieces: tuple[str | Hole, ...]
    test: str
    remote: tuple[str, ...]
    stops: tuple[str, ...] = ()
    question: str | None = None

    @property
    def is_continuation(self) -> bool:
        """Whether what is missing is the end, as long as it may be."""
        return isinstance(self.pieces[-1], Hole) and not any(isinstance(piece, Hole) for piece in self.pieces[:-1])

    @property
    def solution(self) -> list[str]:
        """What the reference writes into the holes."""
        return [piece.text for piece in self.pieces if isinstance(piece, Hole)]

    def source(self, fillings: Sequence[str]) -> str:
        """The program with its holes filled."""
        rest = iter(fillings)
        return "".join(next(rest) if isinstance(piece, Hole) else piece for piece in self.pieces)

    def program(self, fillings: Sequence[str]) -> Program:
        return Program(self.source(fillings), self.test, self.remote, self.source(self.solution))

    def cut(self, text: str) -> str:
        """A continuation up to the first stop; of an answer, the program in it."""
        if self.question is not None:
            return program_in(text)
        return text[: min((place for stop in self.stops if (place := text.find(stop)) >= 0), default=len(text))]

    def as_question(self) -> "Problem":
        """The same problem for a chat model: it answers with the whole program, behind the imports that it is shown.

        Raises:
            ValueError: it has holes within.
        """
        if not self.is_continuation:
            raise ValueError(f"code_eval.chat=true: {self.task_id} has holes within its text, which is no question")
        shown = str(self.pieces[0])
        imports = "".join(f"{line}\n" for line in shown.splitlines() if line.startswith(("import ", "from ")))
        question = f"{ASK}\n\n```python\n{shown.rstrip()}\n```"
        return replace(self, pieces=(imports, Hole(self.source(self.solution))), stops=(), question=question)

    def with_hidden_lines(self, share: float, seed: int) -> "Problem":
        """The same problem with random lines of the solution to be written, all else of it given.

        Args:
            share: of the lines that are not blank, in [0, 1]; at least one line.
        """
        lines = self.source(self.solution)[len(self.pieces[0]) :].split("\n") if isinstance(self.pieces[0], str) else []
        written = [index for index, line in enumerate(lines) if line.strip()]
        if not written:
            raise ValueError(f"code_eval.hidden_lines: {self.task_id} has no solution of which lines could be hidden")
        hidden = set(random.Random(seed).sample(written, max(1, round(share * len(written)))))
        pieces: list[str | Hole] = [self.pieces[0]]
        for index, line in enumerate(lines):
            pieces += ["\n"] if index else []
            pieces.append(Hole(line) if index in hidden else line)
        return replace(self, pieces=tuple(piece for piece in pieces if piece != ""), stops=())


def program_in(answer: str) -> str:
    """Of an answer's fenced blocks the first that defines a function or class, else the first, else all of the answer; of that,
    if it is Python, what defines something.

    Examples, calls and `if __name__` blocks, which would run before the tests, are left out, and so is what was thought aloud.
    """
    said = answer.rpartition("</think>")[2]
    blocks = list(_blocks(said)) or [said]
    programs = [_definitions(block) for block in blocks]
    return next((text for text, defines in programs if defines), programs[0][0])


def _blocks(answer: str) -> Iterator[str]:
    """Fenced blocks as CommonMark has them, indented as they may be; the last one may be open."""
    opened, lines = None, []
    for line in answer.split("\n"):
        fence = _FENCE.fullmatch(line.rstrip())
        if opened is None:
            opened, lines = fence, []
        elif fence and fence[2].startswith(opened[2]) and not fence[3] and len(fence[1]) <= len(opened[1]) + 3:
            yield "\n".join(lines) + "\n"
            opened = None
        else:
            lines.append(line.removeprefix(opened[1]))
    if opened is not None:
        yield "\n".join(lines)


def _definitions(text: str) -> tuple[str, bool]:
    """What is left of Python without what runs at once, and whether it defines a function or class; other text as it is."""
    runs = ast.Expr | ast.If | ast.For | ast.While | ast.Assert
    try:
        module = ast.parse(text)
        module.body = [node for node in module.body if not isinstance(node, runs)]
        kept = ast.unparse(module) + "\n"
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # of the parser, which a deep nest overflows
        return text, False
    return kept, any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in module.body)


def load_problems(path: str | Path, shots: int = 0, key: str = "code_eval.path") -> list[Problem]:
    """All problems of a file, in its order.

    Args:
        shots: solved problems shown before each one of MBPP: as published its tasks 2, 3 and 4, as many of them as this.

    Raises:
        ValueError: names file and line: unreadable, of no known format, or without the examples that `shots` asks for.
    """
    problems: list[Problem] = []
    for place, row in records(Path(path), key, LINE_BYTES, TOTAL_BYTES):
        if shots and "test_list" not in row:
            raise ValueError(f"code_eval.shots={shots}: only MBPP files hold examples to show")
        if len(problems) == MAX_PROBLEMS:
            raise ValueError(f"{place}: more than {MAX_PROBLEMS} problems")
        problems.append(_problem(place, row))
    examples = _examples(problems, shots) if shots else ""
    return [replace(problem, pieces=(examples + str(problem.pieces[0]), *problem.pieces[1:])) for problem in problems]


def hide_lines(problems: Sequence[Problem], share: float, seed: int) -> list[Problem]:
    """See `Problem.with_hidden_lines`; which lines, follows from the seed and the problem's place."""
    if not 0 <= share <= 1:
        raise ValueError(f"code_eval.hidden_lines must be in [0, 1], not {share}")
    return [problem.with_hidden_lines(share, mix_seed(seed, index)) for index, problem in enumerate(problems)]


def _problem(place: str, row: dict[str, Any]) -> Problem:
    if "test_list" in row:
        return _mbpp(place, row)
    if "entry_point" not in row:
        raise ValueError(f"{place}: neither HumanEval (entry_point) nor MBPP (test_list); there is {', '.join(sorted(row))}")
    entry, prompt = text_of(row, "entry_point", place), _text(row, "prompt", place)
    if not entry.isidentifier():
        raise ValueError(f'{place}: "entry_point" must be the name of a function')
    hole = Hole(_text(row, "canonical_solution", place))
    test = f"{_text(row, 'test', place)}\ncheck({entry})\n"
    pieces = (prompt, hole, _text(row, "suffix", place)) if "suffix" in row else (prompt, hole)
    stops = () if "suffix" in row else HUMAN_EVAL_STOPS
    return Problem(_task_id(place, row), pieces, test, (entry,), stops)


def _mbpp(place: str, row: dict[str, Any]) -> Problem:
    code = _text(row, "code", place)
    tests = row["test_list"]
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise ValueError(f'{place}: needs a list of strings under "test_list"')
    imports, setup = row.get("test_imports") or [], row.get("test_setup_code") or ""
    if not (isinstance(setup, str) and isinstance(imports, list) and all(isinstance(line, str) for line in imports)):
        raise ValueError(f'{place}: needs a string under "test_setup_code" and a list of strings under "test_imports"')
    test = "\n".join([*imports, setup, *tests]).replace("\r\n", "\n")
    try:
        remote = _defined(code) & _named(test)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # of the parser, which a deep nest overflows
        raise ValueError(f"{place}: the reference or a test is no Python ({error or type(error).__name__})") from error
    return Problem(_task_id(place, row), (_mbpp_prompt(place, row), Hole(code)), test, tuple(sorted(remote)), MBPP_STOPS)


def _task_id(place: str, row: dict[str, Any]) -> str:
    found = row.get("task_id")
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise ValueError(f'{place}: needs a string or a number under "task_id"')
    return str(found)


def _mbpp_prompt(place: str, row: dict[str, Any]) -> str:
    """The task and its tests as a docstring, which any program may begin with."""
    described = _text(row, "text" if "text" in row else "prompt", place)
    return '"""\n' + "\n".join([described, *row["test_list"]]).replace('"""', "'''").replace("\\", "\\\\") + '\n"""\n'


def _examples(problems: Sequence[Problem], shots: int) -> str:
    by_number = {problem.task_id: problem for problem in problems}
    wanted = ["2", "3", "4"][:shots]
    if shots > 3 or not all(number in by_number for number in wanted):
        raise ValueError(f"code_eval.shots={shots}: the file must hold MBPP's tasks 2, 3 and 4, of which at most 3 are shown")
    shown = [by_number[number] for number in wanted]
    return "".join(f"{problem.pieces[0]}{problem.solution[0].strip(chr(10))}\n\n\n" for problem in shown)


def _text(row: dict[str, Any], name: str, place: str) -> str:
    return text_of(row, name, place).replace("\r\n", "\n")


def _defined(code: str) -> set[str]:
    """Functions and classes at the top level of a program, and what it assigns there."""
    names = set()
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def _named(test: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)}
