"""data=tinygsm: word problems answered by a program whose value is compared (TinyGSM, tested on GSM8K), from local files."""

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flm.data.corpora import records as json_lines
from flm.data.corpora.corpus import Split
from flm.data.corpora.pairs import Pairs
from flm.data.corpora.source_files import reader_of, records
from flm.data.layouts import Layout
from flm.data.tokenizers import Tokenizer
from flm.puzzles.rules import Puzzle, Rules, Verdict
from flm.ranges import Count, Existing, Folder, Index, OpenShare, Text

_FUNCTION = re.compile(r"^def\s+([A-Za-z_]\w*)\s*\(", re.MULTILINE)
_LAST = re.compile(r"#### *([-+0-9.,]+)")


class ProgramRules(Rules):
    """An answer is a function without arguments. It is right if its value, computed in a sandbox, is the reference number."""

    def __init__(self) -> None:
        self._make: Callable[[], Any] | None = None
        self._sandbox: Any = None

    def use(self, sandbox: Callable[[], Any]) -> None:
        """Sets the maker of the sandbox, which is called at the first check."""
        self._make = sandbox

    def check(self, givens: str, answer: str, reference: str | None = None) -> Verdict:
        """`reference` is a number, as text. An answer is valid if it is right: nothing else is known of it.

        Raises:
            ValueError: there is no sandbox, or the reference is missing or no number.
        """
        if reference is None or self._make is None:
            raise ValueError("programs are checked against a number and in a sandbox: set data.test_path, use mode=solve_eval")
        self._sandbox = self._sandbox or self._make()
        try:
            wanted = float(reference)
        except ValueError as error:
            raise ValueError(f"the reference {reference!r} is no number") from error
        program = program_of(answer)
        try:
            value = None if program is None else float(self._sandbox.answers([program])[0].value)
        except (TypeError, ValueError, OverflowError):  # the value is no number
            value = None
        right = value is not None and abs(value - wanted) <= 1e-6 * max(1, abs(wanted))
        return Verdict(right, True, right)


class TinyGsm(Pairs):
    """Questions with programs to learn from, and questions with numbers to be tested on.

    Args:
        path: .jsonl (also .gz) or .parquet file of questions and programs, or a folder of .jsonl.
        test_path: the test split of GSM8K as .jsonl, whose answers end in "#### number"; None: there is no test.
        question_key, code_key: columns of `path`.
        separator: text after every question.
        layout: of a pair in a row; None: `ResponseLayout()`.
        valid_fraction, split_seed, cache_dir, processes: see `RandomSplitCorpus`; held-out pairs of `path` give the
            validation loss.
    """

    columns = None
    held_out = 0.0

    def __init__(
        self,
        path: Existing,
        test_path: Existing | None = None,
        question_key: Text = "question",
        code_key: Text = "code",
        separator: str = "\n",
        layout: Layout | None = None,
        valid_fraction: OpenShare = 0.01,
        split_seed: Index = 0,
        cache_dir: Folder | None = None,
        processes: Count | None = None,
    ):
        super().__init__(question_key, code_key, separator, layout, False, valid_fraction, split_seed, cache_dir, processes)
        self.path, self.test_path = Path(path), None if test_path is None else Path(test_path)
        self.rules = ProgramRules()

    def raw_pairs(self, split: Split) -> Iterator[tuple[str, str, str]]:
        assert self.prompt_key is not None
        keys = [self.prompt_key, self.response_key]
        if reader_of(self.path.name) == "parquet":
            rows = (
                (f"data.path: {self.path}, row {i}", row) for i, row in enumerate(records(self.path, keys, "data.code_key"), 1)
            )
        else:
            rows = json_lines.records(self.path, "data.path")
        for place, row in rows:
            question, code = (json_lines.text_of(row, key, place) for key in keys)
            if question and code:
                yield place, question, code

    def puzzles(self, split: Split) -> list[Puzzle]:
        """The test questions, with their numbers as answers.

        Raises:
            ValueError: there is no test_path, or an answer in it ends in no number.
        """
        if split == "train" or self.test_path is None:
            raise ValueError("data.test_path is not set: name the test split of GSM8K as .jsonl")
        found = []
        for place, record in json_lines.records(self.test_path, "data.test_path"):
            question, answer = (json_lines.text_of(record, key, place) for key in ("question", "answer"))
            last = _LAST.search(answer)
            if last is None:
                raise ValueError(f'{place}: the answer does not end in "#### number"')
            found.append(Puzzle(question + self.separator, last[1].replace(",", "")))
        return found

    def request(self, puzzle: Puzzle, tokenizer: Tokenizer, length: int) -> tuple[list[int], list[bool]]:
        """Token ids and holes of a row: the question, and all the rest to be written.

        Raises:
            ValueError: the question leaves no room.
        """
        ids = tokenizer.encode(puzzle.givens)
        if len(ids) >= length:
            raise ValueError(f"a question of {len(ids)} tokens does not fit model.length={length}")
        return ids + [0] * (length - len(ids)), [False] * len(ids) + [True] * (length - len(ids))

    def read(self, row: Sequence[int], puzzle: Puzzle, tokenizer: Tokenizer) -> str:
        """The program: the text after the question, up to the first end token."""
        ids = list(row[len(tokenizer.encode(puzzle.givens)) :])
        return tokenizer.decode(ids[: ids.index(tokenizer.eos_id)] if tokenizer.eos_id in ids else ids)

    def space_size(self) -> None:
        return None

    def everything(self) -> None:
        return None

    def source_fingerprint(self) -> dict[str, Any]:
        if reader_of(self.path.name) == "parquet":
            if not self.path.is_file():
                raise ValueError(f"data.path: no file {self.path} (seen from {Path.cwd()})")
            status = self.path.stat()
            content: Any = [self.path.name, status.st_size, status.st_mtime_ns]
        else:
            content = json_lines.digest(self.path, "data.path")
        return {"path": content, "keys": [self.prompt_key, self.response_key], "separator": self.separator}

    def describe(self) -> str:
        return f"questions with programs of {self.path}"


def program_of(answer: str) -> tuple[str, str] | None:
    """The function in an answer and the call of it, as the sandbox's `answers` takes them. None: there is no function.

    Lines at the end that do not parse are left out.
    """
    function = _FUNCTION.search(answer)
    if function is None:
        return None
    lines = answer[function.start() :].split("\n")
    while lines and not _parses("\n".join(lines)):
        lines.pop()
    return ("\n".join(lines), f"{function[1]}()") if lines else None


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
