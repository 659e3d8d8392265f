"""Sudoku: counts and puzzles with known answers (shared facts: 288 and 28,200,960 grids), symmetries, splits."""

import random
from collections import Counter
from itertools import permutations
from math import factorial

import pytest

from flm.puzzles.rules import HOLE
from flm.puzzles.sudoku import Sudoku, dig
from flm.puzzles.sudoku_rules import SudokuRules

ONE_SOLUTION = [  # size, puzzle, solution, rounds of singles
    (4, "0100000100030200", "4132234114233214", 2),
    (4, "0340000100000400", "1342423131242413", 3),
    (4, "0000201330044000", "1342241331244231", 2),
    (6, "602000000001500320000000030004000000", "612453453261541326326145235614164532", 6),
    (6, "400001206004000060030150000005340000", "453621216534521463634152162345345216", 2),
    (6, "006020300046600053200010040000000400", "456321321546614253235614543162162435", 4),
    (
        9,
        "070093050000025300009701000300000100690510834018036790005008003084302610000004080",
        "276893451841625379539741268357489126692517834418236795725168943984352617163974582",
        5,
    ),
    (
        9,
        "743000000002408003500201090058000020000000700400005800000090001200100000100803074",
        "743569182912478653586231497658714329321986745497325816874692531235147968169853274",
        13,
    ),
]


@pytest.mark.parametrize("size,givens,solution,rounds", ONE_SOLUTION)
def test_puzzles_with_one_solution(size, givens, solution, rounds):
    rules, givens = SudokuRules(size), givens.replace("0", HOLE)
    assert rules.solve(givens, 3) == [solution]
    assert rules.singles(givens) == (solution, rounds)
    assert rules.check(givens, solution, solution) == (True, True, True)


def test_a_puzzle_with_two_solutions_accepts_both_and_agrees_with_one():
    rules, givens = SudokuRules(4), "0034341200434321".replace("0", HOLE)
    first, second = "1234341221434321", "2134341212434321"
    assert sorted(rules.solve(givens, 5)) == [first, second]
    assert rules.check(givens, second, first) == (True, True, False) and rules.check(givens, second, first).solved


def test_who_changes_a_clue_or_breaks_a_rule_is_told():
    rules = SudokuRules(4)
    givens, solution = "4...............", "4132234114233214"
    cheat = rules.check(givens, "1234341221434321", solution)
    assert cheat.valid and not cheat.consistent and not cheat.solved
    broken = rules.check(givens, "4132234114233241", solution)
    assert broken.consistent and not broken.valid
    for answer in ("", solution + "1", "413223411423321?", solution.replace("4", "5")):
        assert not rules.valid(answer)


def test_all_288_grids_of_4x4():
    corpus = Sudoku(4, train=None, valid=None, held_out=0.0)
    whole = corpus.everything()
    assert len(set(whole)) == len(whole) == corpus.space_size() == 288 and all(map(corpus.rules.valid, whole))
    # by brute force over rows, which knows nothing of how they were made
    rows = ["".join(row) for row in permutations("1234")]
    brute = {a + b + c + d for a in rows for b in rows for c in rows for d in rows if corpus.rules.valid(a + b + c + d)}
    assert brute == set(whole)
    assert sorted(Counter(map(corpus.rules.invariant, whole)).values()) == [96, 192]
    assert len(corpus.families()) == 12


def test_28200960_grids_of_6x6():
    corpus = Sudoku(6, train=1, valid=1)
    assert all(map(corpus.rules.valid, corpus.completions))
    assert len(set(corpus.completions)) * factorial(6) * factorial(3) == corpus.space_size() == 28_200_960
    rng = random.Random(0)
    drawn = [corpus.draw(rng) for _ in range(2000)]
    assert all(map(corpus.rules.valid, drawn))
    # uniform over the grids: every symbol equally often in a cell, and equal cells of two boxes one time in six
    share = Counter(grid[0] for grid in drawn)
    assert all(abs(count - 2000 / 6) < 4 * (2000 * 5 / 36) ** 0.5 for count in share.values())


@pytest.mark.parametrize("size", [4, 6, 9])
def test_symmetries_leave_the_invariant(size):
    rules, rng = SudokuRules(size), random.Random(size)
    grid = Sudoku(size, train=1, valid=1).draw(rng)

    def order(count: int, band: int) -> list[int]:
        bands = rng.sample(range(count // band), count // band)
        return [band * b + i for b in bands for i in rng.sample(range(band), band)]

    for _ in range(5):
        rows, columns = order(size, rules.box_rows), order(size, rules.box_columns)
        relabelled = str.maketrans(rules.symbols, "".join(rng.sample(rules.symbols, size)))
        moved = "".join(grid[r * size + c] for r in rows for c in columns).translate(relabelled)
        if rules.box_rows == rules.box_columns:
            moved = "".join(moved[c * size + r] for r in range(size) for c in range(size))
        assert rules.valid(moved) and rules.invariant(moved) == rules.invariant(grid)


@pytest.mark.parametrize("size,train,valid", [(4, None, None), (6, 150, 20), (9, 30, 5)])
def test_no_held_out_puzzle_is_a_learned_one_up_to_symmetry(size, train, valid):
    corpus = Sudoku(size, clues=size * size // 2, train=train, valid=valid, held_out=0.2, givens="scattered", seed=3)
    learned, held_out = corpus.puzzles("train"), corpus.puzzles("valid")
    key = corpus.rules.normalised if size == 4 else corpus.rules.invariant
    assert not {key(puzzle.answer) for puzzle in learned} & {key(puzzle.answer) for puzzle in held_out}
    assert len(learned) + len(held_out) == (288 if size == 4 else train + valid)
    for givens, answer in held_out:
        assert corpus.rules.solve(givens, 2) == [answer]
        assert givens.count(HOLE) <= size * size - size * size // 2
    again = Sudoku(size, clues=size * size // 2, train=train, valid=valid, held_out=0.2, givens="scattered", seed=3)
    assert again.puzzles("train") == learned and again.puzzles("valid") == held_out


def test_digging_stops_where_a_second_solution_would_come():
    rules = SudokuRules(4)
    givens = dig(rules, "4132234114233214", 0, random.Random(0))
    assert len(givens.replace(HOLE, "")) >= 4  # no 4x4 puzzle of three clues has one solution
    for cell, clue in enumerate(givens):
        if clue != HOLE:
            assert len(rules.solve(givens[:cell] + HOLE + givens[cell + 1 :], 2)) == 2


def test_puzzles_from_files(tmp_path):
    rows = [(p[1], p[2]) for p in ONE_SOLUTION if p[0] == 9]
    file = tmp_path / "sudoku.csv"
    file.write_text("source,question,answer\n" + "".join(f"x,{q},{a}\n" for q, a in rows))
    corpus = Sudoku(9, path=file, train=None, valid=None, held_out=0.0, givens="own")
    assert [(p.givens.replace(HOLE, "0"), p.answer) for p in corpus.puzzles("train")] == rows
    file.write_text("question,answer\n" + f"{rows[0][0]},{rows[1][1]}\n")
    with pytest.raises(ValueError, match=r"sudoku.csv, line 2: the solution"):
        Sudoku(9, path=file, train=None, valid=None).puzzles("train")
    file.write_text("quiz,answer\na,b\n")
    with pytest.raises(ValueError, match="data.givens_key"):
        Sudoku(9, path=file, train=None, valid=None).puzzles("train")
    with pytest.raises(ValueError, match="nowhere.csv"):
        Sudoku(9, path=tmp_path / "nowhere.csv", train=None, valid=None).puzzles("train")
