"""data=maze: the shortest path through a maze, cell by cell."""

import random
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Annotated, Any

from annotated_types import Ge, Le

from flm.puzzles.corpus import PuzzleCorpus
from flm.puzzles.rules import HOLE, Rules
from flm.ranges import Index, Where

OddSize = Annotated[int, Ge(5), Le(255), Where(lambda size: size % 2 == 1, "odd")]
WALL, FREE, START, GOAL, PATH = "#_SG*"


class MazeRules(Rules):
    """The marked cells are a shortest path from start to goal. Cells are listed row by row, N x N."""

    def __init__(self, size: int):
        self.size, self.symbols = size, FREE + PATH

    def neighbours(self, cell: int) -> Iterator[int]:
        row, column = divmod(cell, self.size)
        for i, j in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= i < self.size and 0 <= j < self.size:
                yield i * self.size + j

    def distances(self, cells: str, start: int, through: str) -> dict[int, int]:
        """Distances from a cell to all that it reaches through cells with the symbols `through`."""
        found, waiting = {start: 0}, deque([start])
        while waiting:
            cell = waiting.popleft()
            for other in self.neighbours(cell):
                if other not in found and cells[other] in through:
                    found[other] = found[cell] + 1
                    waiting.append(other)
        return found

    def valid(self, answer: str) -> bool:
        if len(answer) != self.size**2 or answer.count(START) != 1 or answer.count(GOAL) != 1:
            return False
        if set(answer) - {WALL, FREE, START, GOAL, PATH}:
            return False
        start, goal = answer.index(START), answer.index(GOAL)
        marked = self.distances(answer, start, PATH + GOAL).get(goal)
        shortest = self.distances(answer, start, FREE + PATH + GOAL).get(goal)
        return marked is not None and marked == shortest == answer.count(PATH) + 1

    def solve(self, givens: str, limit: int = 2) -> list[str]:
        start, goal = givens.index(START), givens.index(GOAL)
        from_goal = self.distances(givens, goal, HOLE + FREE + PATH + START)
        if start not in from_goal:
            return []
        found: list[str] = []
        paths = [[start]]
        while paths and len(found) < limit:
            path = paths.pop()
            if path[-1] == goal:
                cells = list(givens.replace(HOLE, FREE))
                for cell in path[1:-1]:
                    cells[cell] = PATH
                found.append("".join(cells))
            else:
                at = from_goal[path[-1]]
                paths += [[*path, cell] for cell in self.neighbours(path[-1]) if from_goal.get(cell) == at - 1]
        return found

    def propagate(self, givens: str) -> str:
        """Fills dead ends; if the holes that are left do not fork, they are the path."""
        cells = list(givens)

        def ways(cell: int) -> list[int]:
            return [other for other in self.neighbours(cell) if cells[other] not in (WALL, FREE)]

        dead = [cell for cell, symbol in enumerate(cells) if symbol == HOLE]
        while dead:
            cell = dead.pop()
            if cells[cell] == HOLE and len(ways(cell)) <= 1:
                cells[cell] = FREE
                dead += [other for other in self.neighbours(cell) if cells[other] == HOLE]
        holes = [cell for cell, symbol in enumerate(cells) if symbol == HOLE]
        if all(len(ways(cell)) == 2 for cell in holes):
            for cell in holes:
                cells[cell] = PATH
        return "".join(cells)


class Maze(PuzzleCorpus):
    """Mazes by randomised depth-first search, with start and goal anywhere in them; walls, start and goal are given.

    A maze that is rotated, mirrored or walked backwards is in the same family.

    Args:
        size: N, odd and at least 5: N x N cells, including walls.
        loops: walls to remove, each of which closes a loop; with any, there may be several shortest paths.
        rest: as `PuzzleCorpus`.
    """

    def __init__(self, size: OddSize = 9, loops: Index = 0, **rest: Any):
        super().__init__(**rest)
        self.size, self.columns, self.loops, self.rules = size, size, loops, MazeRules(size)

    def draw(self, rng: random.Random) -> str:
        n = self.size
        cells = [WALL] * n * n
        rooms = [row * n + column for row in range(1, n, 2) for column in range(1, n, 2)]
        path = [rng.choice(rooms)]
        cells[path[0]] = HOLE
        while path:
            row, column = divmod(path[-1], n)
            ahead = [
                (i * n + j, (row + i) // 2 * n + (column + j) // 2)
                for i, j in ((row - 2, column), (row + 2, column), (row, column - 2), (row, column + 2))
                if 0 < i < n and 0 < j < n and cells[i * n + j] == WALL
            ]
            if not ahead:
                path.pop()
                continue
            room, door = rng.choice(ahead)
            cells[room] = cells[door] = HOLE
            path.append(room)
        walls = [
            cell
            for cell in range(n * n)
            if cells[cell] == WALL and 0 < cell // n < n - 1 and 0 < cell % n < n - 1 and (cell // n + cell % n) % 2
        ]
        for cell in rng.sample(walls, min(self.loops, len(walls))):
            cells[cell] = HOLE
        start, goal = rng.sample(rooms, 2)
        cells[start], cells[goal] = START, GOAL
        return rng.choice(self.rules.solve("".join(cells), limit=16))

    def givens_of(self, answer: str, rng: random.Random) -> str:
        return answer.replace(FREE, HOLE).replace(PATH, HOLE)

    def family(self, answer: str) -> Hashable:
        n, cells = self.size, answer.replace(PATH, FREE)
        alike = []
        for _ in range(2):
            for _ in range(4):
                cells = "".join(cells[(n - 1 - j) * n + i] for i in range(n) for j in range(n))
                alike += [cells, cells.translate(str.maketrans(START + GOAL, GOAL + START))]
            cells = "".join(cells[i * n + n - 1 - j] for i in range(n) for j in range(n))
        return min(alike)

    def describe(self) -> str:
        return f"mazes of {self.size}x{self.size} cells"
