"""data=sudoku: grids of 4x4, 6x6 and 9x9, from nothing or with clues."""

import random
from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property
from itertools import permutations, product
from pathlib import Path
from typing import Any, Literal

from flm.data.corpora.corpus import Split
from flm.puzzles.corpus import PuzzleCorpus
from flm.puzzles.puzzle_files import digest, read_puzzles
from flm.puzzles.rules import HOLE, Puzzle
from flm.puzzles.sudoku_rules import SudokuRules
from flm.ranges import Existing, Index, Text

_GRIDS = {4: 288, 6: 28_200_960, 9: 6_670_903_752_021_072_936_960}  # 9: Felgenhauer and Jarvis, 2005


class Sudoku(PuzzleCorpus):
    """Sudoku.

    4x4 and 6x6 grids are drawn uniformly from all that exist; 9x9 grids by a randomised search, which is not uniform. Whole
    families are held out: 4x4 grids that differ only by relabelling, 6x6 and 9x9 grids of one invariant under the symmetries.

    Args:
        size: 4, 6 or 9.
        clues: number of clues of a puzzle; there are more if removing any other would allow a second solution.
        path: a file of puzzles to learn from, .csv or .jsonl, also .gz, with cells row by row; None: puzzles are made.
        valid_path: a file of held-out puzzles; None: the held-out families of `path`.
        givens_key, answer_key: columns of the puzzle, with 0 or . at holes, and of its solution.
        rest: arguments of `PuzzleCorpus`.
    """

    def __init__(
        self,
        size: Literal[4, 6, 9] = 4,
        clues: Index = 6,
        path: Existing | None = None,
        valid_path: Existing | None = None,
        givens_key: Text = "question",
        answer_key: Text = "answer",
        **rest: Any,
    ):
        super().__init__(**rest)
        self.rules = SudokuRules(size)
        if clues > size * size:
            raise ValueError(f"data.clues must be at most {size * size}, not {clues}")
        if valid_path is not None and path is None:
            raise ValueError("data.valid_path needs data.path: puzzles are either made or read")
        self.size, self.columns, self.clues = size, size, clues
        self.path, self.valid_path = (None if name is None else Path(name) for name in (path, valid_path))
        self.givens_key, self.answer_key = givens_key, answer_key

    def space_size(self) -> int:
        return _GRIDS[self.size]

    def everything(self) -> list[str] | None:
        return sorted(self.grid(*choice) for choice in self._choices()) if self.size == 4 else None

    def families(self) -> Sequence[Hashable] | None:
        if self.size == 9:
            return None
        if self.size == 6:
            return sorted({self.family(grid) for grid in self.completions}, key=repr)
        return super().families()

    def family(self, answer: str) -> Hashable:
        return self.rules.normalised(answer) if self.size == 4 else self.rules.invariant(answer)

    def draw(self, rng: random.Random) -> str:
        if self.size == 9:
            return random_grid(self.rules, rng)
        symbols = rng.sample(self.rules.symbols, self.size)
        order = [rng.sample(range(self.rules.box_columns), self.rules.box_columns) for _ in range(self.stacks - 1)]
        return self.grid(rng.choice(self.completions), symbols, order)

    def givens_of(self, answer: str, rng: random.Random) -> str:
        return dig(self.rules, answer, self.clues, rng)

    @property
    def stacks(self) -> int:
        return self.size // self.rules.box_columns

    @cached_property
    def completions(self) -> list[str]:
        """4x4 and 6x6 grids whose first row is in order, and whose second row is in order inside each box but the first.

        Relabelling, and reordering columns inside boxes other than the first, divide all grids into classes. Each class has
        exactly one of these grids, so `grid` makes every grid from one of them in one way.
        """
        n, c = self.size, self.rules.box_columns
        first, rest = self.rules.symbols, HOLE * (n * (n - self.rules.box_rows))
        begins = ("".join(box) for box in permutations(first[c:], c))
        bands = (first + box + "".join(s for s in first if s not in box) for box in begins)
        return sorted(grid for band in bands for grid in self.rules.solutions(band + rest, limit=10**9))

    def grid(self, completion: str, symbols: Sequence[str], order: Sequence[Sequence[int]]) -> str:
        """A completion with the columns of each box after the first reordered, and then relabelled."""
        n, c = self.size, self.rules.box_columns
        columns = list(range(c)) + [c * (i + 1) + j for i, box in enumerate(order) for j in box]
        moved = "".join(completion[row * n + column] for row in range(n) for column in columns)
        return moved.translate(str.maketrans(self.rules.symbols, "".join(symbols)))

    def puzzles(self, split: Split) -> list[Puzzle]:
        if self.path is None:
            return super().puzzles(split)
        if split not in self._made:
            self._made[split] = list(self._read(split))
        return self._made[split]

    def source_fingerprint(self) -> dict[str, Any]:
        files = {key: None if name is None else digest(name) for key, name in self._files().items()}
        return super().source_fingerprint() | files

    def describe(self) -> str:
        if self.path is not None:
            return f"{self.size}x{self.size} Sudoku of {self.path}"
        return f"{self.size}x{self.size} Sudoku, {'all' if self.train is None else self.train} grids to learn from"

    def _choices(self) -> Iterator[tuple[str, Sequence[str], Sequence[Sequence[int]]]]:
        boxes = list(permutations(range(self.rules.box_columns)))
        return product(self.completions, permutations(self.rules.symbols), product(boxes, repeat=self.stacks - 1))

    def _files(self) -> dict[str, Path | None]:
        return {"path": self.path, "valid_path": self.valid_path}

    def _read(self, split: Split) -> Iterator[Puzzle]:
        apart = self.valid_path is not None
        key = "valid_path" if split == "valid" and apart else "path"
        wanted, taken = (self.train if split == "train" else self.valid), 0
        for place, givens, answer in read_puzzles(self._files()[key], f"data.{key}", self.givens_key, self.answer_key):
            puzzle = Puzzle(givens.replace("0", HOLE), answer)
            if not self.rules.check(*puzzle).solved:
                raise ValueError(f"{place}: the solution is no {self.size}x{self.size} Sudoku, or not one of the puzzle")
            if wanted is not None and taken == wanted:
                return
            if apart or not self.held_out or self.is_held_out(answer) == (split == "valid"):
                taken += 1
                yield puzzle if self.givens != "none" else Puzzle(HOLE * len(answer), answer)


def random_grid(rules: SudokuRules, rng: random.Random) -> str:
    """A 9x9 grid: three random boxes on the diagonal, which always fit, completed by search in a random order of symbols."""
    cells = [HOLE] * rules.size**2
    for box in rules.units[2 * rules.size :: rules.box_rows + 1]:
        for cell, symbol in zip(box, rng.sample(rules.symbols, rules.size), strict=True):
            cells[cell] = symbol
    return next(rules.solutions("".join(cells), 1, rng.sample(range(rules.size), rules.size)))


def dig(rules: SudokuRules, answer: str, clues: int, rng: random.Random) -> str:
    """The puzzle left after removing cells in random order, each if the solution stays unique, down to `clues` cells."""
    cells, left = list(answer), len(answer)
    for cell in rng.sample(range(len(cells)), len(cells)):
        if left <= clues:
            break
        cells[cell], kept = HOLE, cells[cell]
        if len(rules.solve("".join(cells), 2)) == 1:
            left -= 1
        else:
            cells[cell] = kept
    return "".join(cells)
