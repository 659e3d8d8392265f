"""Sudoku of 4x4, 6x6 and 9x9: rules, an exact solver, singles, and what the symmetries leave unchanged.

A grid is a string of cells, row by row. N side; a box has R rows and C columns, N = R C.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property
from itertools import combinations

from flm.puzzles.rules import HOLE, Rules

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}


class SudokuRules(Rules):
    """Every symbol once in each row, column and box.

    Args:
        size: N, 4, 6 or 9.
    """

    def __init__(self, size: int):
        if size not in BOXES:
            raise ValueError(f"data.size must be one of {', '.join(map(str, BOXES))}, not {size}")
        self.size, (self.box_rows, self.box_columns) = size, BOXES[size]
        self.symbols = "".join(str(n) for n in range(1, size + 1))

    @cached_property
    def units(self) -> list[list[int]]:
        """The cells of each row, column and box."""
        n, r, c = self.size, self.box_rows, self.box_columns
        rows = [[row * n + column for column in range(n)] for row in range(n)]
        columns = [[row * n + column for row in range(n)] for column in range(n)]
        boxes = [
            [(top + i) * n + left + j for i in range(r) for j in range(c)] for top in range(0, n, r) for left in range(0, n, c)
        ]
        return rows + columns + boxes

    @cached_property
    def peers(self) -> list[set[int]]:
        """The cells that share a unit with each cell."""
        return [
            {other for unit in self.units if cell in unit for other in unit if other != cell} for cell in range(self.size**2)
        ]

    def valid(self, answer: str) -> bool:
        if len(answer) != self.size**2:
            return False
        whole = set(self.symbols)
        return all({answer[cell] for cell in unit} == whole for unit in self.units)

    def solve(self, givens: str, limit: int = 2) -> list[str]:
        return list(self.solutions(givens, limit))

    def solutions(self, givens: str, limit: int, order: Sequence[int] | None = None) -> Iterator[str]:
        """Up to `limit` solutions. The search branches at the cell with fewest candidates, and tries symbols (indices) so that
        the last in `order` comes first.
        """
        start = self._candidates(givens)
        if start is None:
            return
        order = range(self.size) if order is None else order
        found, stack = 0, [start]
        while stack and found < limit:
            masks = stack.pop()
            open_cells = [cell for cell, mask in enumerate(masks) if mask & (mask - 1)]
            if not open_cells:
                found += 1
                yield "".join(self.symbols[mask.bit_length() - 1] for mask in masks)
                continue
            cell = min(open_cells, key=lambda cell: masks[cell].bit_count())
            for symbol in order:
                if masks[cell] >> symbol & 1:
                    after = list(masks)
                    if self._place(after, cell, 1 << symbol):
                        stack.append(after)

    def propagate(self, givens: str) -> str:
        return self.singles(givens)[0]

    def singles(self, givens: str) -> tuple[str, int]:
        """The grid with naked and hidden singles written until there are none, and the number of rounds.

        A round writes all singles of one grid at once.
        """
        cells, rounds = list(givens), 0
        while True:
            options = [
                {cells[cell]} if cells[cell] != HOLE else set(self.symbols) - {cells[peer] for peer in self.peers[cell]}
                for cell in range(len(cells))
            ]
            sure = {cell: options[cell] for cell in range(len(cells)) if cells[cell] == HOLE and len(options[cell]) == 1}
            for unit in self.units:
                for symbol in self.symbols:
                    places = [cell for cell in unit if symbol in options[cell]]
                    if len(places) == 1 and cells[places[0]] == HOLE:
                        sure.setdefault(places[0], {symbol})
            if not sure:
                return "".join(cells), rounds
            for cell, symbol in sure.items():
                cells[cell] = next(iter(symbol))
            rounds += 1

    def normalised(self, grid: str) -> str:
        """The grid of the same relabelling class whose first row is in order."""
        return grid.translate(str.maketrans(grid[: self.size], self.symbols))

    def invariant(self, grid: str) -> Hashable:
        """A value that relabelling, reordering lines and bands, and transposing do not change.

        It counts the cycle types of the permutations between pairs of lines, separately for pairs in one band and other pairs.
        Grids of different invariants are essentially different; grids of one invariant may be.
        """
        n = self.size
        rows = self._cycle_types([grid[i * n : (i + 1) * n] for i in range(n)], self.box_rows)
        columns = self._cycle_types([grid[i::n] for i in range(n)], self.box_columns)
        return tuple(sorted((rows, columns))) if self.box_rows == self.box_columns else (rows, columns)

    def _cycle_types(self, lines: list[str], band: int) -> tuple[tuple[tuple[bool, tuple[int, ...]], int], ...]:
        kinds: Counter[tuple[bool, tuple[int, ...]]] = Counter()
        for (i, first), (j, second) in combinations(enumerate(lines), 2):
            step, lengths = dict(zip(first, second, strict=True)), []
            while step:
                at, length = next(iter(step)), 0
                while at in step:
                    at, length = step.pop(at), length + 1
                lengths.append(length)
            kinds[i // band == j // band, tuple(sorted(lengths))] += 1
        return tuple(sorted(kinds.items()))

    def _candidates(self, givens: str) -> list[int] | None:
        masks = [(1 << self.size) - 1] * self.size**2
        for cell, symbol in enumerate(givens):
            if symbol != HOLE and not self._place(masks, cell, 1 << self.symbols.index(symbol)):
                return None
        return masks

    def _place(self, masks: list[int], cell: int, bit: int) -> bool:
        """Writes a symbol and all naked singles that follow. False if a cell is left without a candidate."""
        if not masks[cell] & bit:
            return False
        masks[cell] = bit
        waiting = [cell]
        while waiting:
            done = waiting.pop()
            for peer in self.peers[done]:
                if masks[peer] & masks[done]:
                    masks[peer] &= ~masks[done]
                    if not masks[peer]:
                        return False
                    if not masks[peer] & (masks[peer] - 1):
                        waiting.append(peer)
        return True
