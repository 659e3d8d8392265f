"""The other puzzles: known answers, splits, and rows of training."""

import random
from pathlib import Path

import pytest
import torch

from flm.data.corpora.corpus import Corpus
from flm.data.module import TextDataModule
from flm.data.tokenizers import CharacterTokenizer
from flm.puzzles.arithmetic import Arithmetic
from flm.puzzles.countdown import Countdown, CountdownRules, solutions
from flm.puzzles.maze import HOLE, Maze, MazeRules
from flm.puzzles.permutation import Permutation
from flm.puzzles.sudoku import Sudoku
from flm.schema import check

SMALL = {"train": 60, "valid": 10, "held_out": 0.2}
CORPORA = {
    "permutation": lambda: Permutation(5, train=None, valid=None, held_out=0.2, givens="own"),
    "long permutation": lambda: Permutation(9, clues=7, **SMALL),
    "suffix sums": lambda: Arithmetic(digits=5, **SMALL),
    "sum": lambda: Arithmetic("sum", digits=3, reverse=True, **SMALL),
    "product": lambda: Arithmetic("product", digits=2, **SMALL),
    "maze": lambda: Maze(7, **SMALL),
    "maze with rings": lambda: Maze(9, loops=3, **SMALL),
    "countdown": lambda: Countdown(3, **SMALL),
    "countdown of 5": lambda: Countdown(5, **SMALL),
}


@pytest.mark.parametrize("name", CORPORA)
def test_puzzles_are_solved_by_their_answers_and_families_are_apart(name):
    corpus = CORPORA[name]()
    learned, held_out = corpus.puzzles("train"), corpus.puzzles("valid")
    assert learned and held_out
    for puzzle in (*learned, *held_out):
        assert len(puzzle.givens) == len(puzzle.answer) and HOLE in puzzle.givens and HOLE not in puzzle.answer
        assert corpus.rules.check(*puzzle, puzzle.answer) == (True, True, True)
        spoiled = puzzle.answer[::-1]
        assert not corpus.rules.check(puzzle.givens, spoiled).solved or spoiled == puzzle.answer
    assert not {corpus.family(p.answer) for p in learned} & {corpus.family(p.answer) for p in held_out}
    for givens, _ in held_out[:4]:
        found = corpus.rules.solve(givens, 6)
        assert found and len(set(found)) == len(found) and all(corpus.rules.check(givens, answer).solved for answer in found)
        filled = corpus.rules.propagate(givens)
        assert filled is None or all(all(f in (HOLE, a) for f, a in zip(filled, answer, strict=True)) for answer in found)
    assert CORPORA[name]().puzzles("valid") == held_out


def test_countdown_counts():
    """Positive whole numbers, the larger operand first."""
    for numbers, target, count in (([3, 5, 7], 26, 1), ([25, 8, 3, 2], 97, 3), ([6] * 4, 24, 5), ([1] * 4, 24, 0)):
        assert len(set(solutions(numbers, target))) == count
    rules = CountdownRules()
    assert rules.valid("3,5,7>26:7*3=21,21+5=26___") and rules.valid("3,5,7>26:3*7=21,5+21=26")
    for wrong in (
        "3,5,7>26:7*3=21,21+5=27",  # wrong sum
        "3,5,7>26:5*5=25,25+1=26",  # numbers that are not given: published checkers let this pass
        "3,5,7>26:7*3=21,7*3=21",  # a number twice, and the target not reached
        "3,5,7>26:7*3=21",
        "3,5,7>26:7*3=21,21+5=26,",
        "3,5>2:5/3=2",
    ):
        assert not rules.valid(wrong), wrong


def test_shortest_paths_of_two_mazes():
    rules = MazeRules(4)
    for rows, count in (
        (["S.#.", "..#.", ".#..", "...G"], 1),
        (["S#..", ".#.#", "...#", "##.G"], 1),
        (["S...", "....", "....", "...G"], 20),
    ):
        found = rules.solve("".join(rows), 50)
        assert len(found) == count and all(rules.valid(answer) and answer.count("*") == 5 for answer in found)
    assert rules.valid("S_#_*_#_*#__***G")
    for wrong in ("S_#_*_#_*#_****G", "S*#_**#_*#__***G", "S_#_*_#_*#__*_*G", "S_#_*_#_*#__***S", "S_#_*_#_*#__***"):
        assert not rules.valid(wrong), wrong


def test_turned_and_mirrored_mazes_are_one_family():
    corpus, n = Maze(7, **SMALL), 7
    maze = corpus.draw(random.Random(1))
    turned = "".join(maze[(n - 1 - j) * n + i] for i in range(n) for j in range(n))
    mirrored = "".join(maze[i * n + n - 1 - j] for i in range(n) for j in range(n))
    backwards = maze.translate(str.maketrans("SG", "GS"))
    assert len({maze, turned, mirrored, backwards}) == 4
    assert {corpus.family(m) for m in (turned, mirrored, backwards)} == {corpus.family(maze)}


def longest_carry_chain(first: str, second: str) -> int:
    """Of the sum of two numbers of one width: the most digits that one carry runs through, where it began included."""
    longest = run = 0
    for a, b in zip(reversed(first), reversed(second), strict=True):
        together = int(a) + int(b)
        run = 1 if together > 9 else run + 1 if together == 9 and run else 0
        longest = max(longest, run)
    return longest


def test_arithmetic():
    corpus = Arithmetic(digits=4, **SMALL)
    assert corpus.rules.completed("5192=") == "5192=7212"
    assert Arithmetic("sum", digits=2, **SMALL).rules.completed("12+99=") == "12+99=111"
    assert Arithmetic("sum", digits=2, reverse=True, **SMALL).rules.completed("12+98=") == "12+98=011"
    assert Arithmetic("product", digits=2, **SMALL).rules.completed("12*99=") == "12*99=1188"
    sums = Arithmetic("sum", digits=2, **SMALL)
    assert sums.family("12+99=111") == sums.family("99+12=111") != sums.family("12+98=110")
    assert longest_carry_chain("99950001", "00049999") == 8 and longest_carry_chain("12", "34") == 0
    rng = random.Random(0)
    tail = Arithmetic("sum", digits=8, carry_chain=5, **SMALL)
    assert all(longest_carry_chain(s[:8], s[9:17]) >= 5 for s in (tail.draw(rng) for _ in range(200)))
    # uniform sums of 8 digits: a chain of 3 or more in 2.7 %
    plain = Arithmetic("sum", digits=8, **SMALL)
    share = sum(longest_carry_chain(s[:8], s[9:17]) >= 3 for s in (plain.draw(rng) for _ in range(4000))) / 4000
    assert abs(share - 0.027) < 4 * (0.027 / 4000) ** 0.5


@pytest.mark.parametrize("layout", ["holes", "prompt"])
def test_rows_of_scattered_givens(layout):
    length = 16 * (1 + (layout == "prompt"))
    corpus = Sudoku(4, train=None, valid=None, held_out=0.15, givens="scattered", masks=20, layout=layout)
    module = TextDataModule(corpus, CharacterTokenizer(), length, global_batch_size=8)
    rows, tokenizer = module.train_blocks(), module.tokenizer
    assert len(rows) == 240 * 20
    written = []
    for index in range(0, len(rows), 7):
        row = rows.row(index)
        tokens, weight = row.tokens, row.weight
        assert row.documents is None and tokens.shape == weight.shape == (length,)
        answer = "".join(tokenizer.token(i) for i in tokens[-16:].tolist())
        assert corpus.rules.valid(answer)
        if layout == "prompt":
            shown = "".join(tokenizer.token(i) for i in tokens[:16].tolist())
            assert weight[:16].sum() == 0
            assert all((s == HOLE) == bool(w) and s in (HOLE, a) for s, w, a in zip(shown, weight[16:], answer, strict=True))
        written.append(int(weight.sum()))
    # the number of holes is uniform on 1 ... 16, and so are their places
    counts = torch.bincount(torch.tensor(written), minlength=17)[1:].float()
    assert counts.min() > 0 and abs(counts.mean() - len(written) / 16) < 1e-3
    assert abs(sum(written) / len(written) - 8.5) < 4 * 4.61 / len(written) ** 0.5
    valid = module.valid_blocks()
    assert {int(valid.row(i).weight.sum()) for i in range(len(valid))} <= {8, 9, 10}  # about 6 clues: their own
    again = TextDataModule(corpus, CharacterTokenizer(), length, global_batch_size=8).train_blocks()
    assert torch.equal(again.row(33).weight, rows.row(33).weight)
    assert rows.token_counts(module.vocab_size)[2:].sum() > 0


def test_variants_are_other_puzzles_of_the_same_held_out_answers():
    plain, varied = (Sudoku(4, train=None, valid=None, held_out=0.15, variants=count) for count in (1, 5))
    puzzles = varied.puzzles("valid")
    assert len(plain.puzzles("valid")) == 48 and puzzles[:48] == plain.puzzles("valid")
    assert 200 < len(puzzles) == len(set(puzzles)) <= 240
    assert {p.answer for p in puzzles} == {p.answer for p in plain.puzzles("valid")}
    assert all(varied.rules.solve(p.givens, 2) == [p.answer] for p in puzzles)
    assert varied.puzzles("train") == plain.puzzles("train")


def test_another_length_and_impossible_splits_are_told():
    corpus = Sudoku(4, train=None, valid=None)
    module = TextDataModule(corpus, CharacterTokenizer(), 17, global_batch_size=8)
    with pytest.raises(ValueError, match="model.length=17: rows of these puzzles have 16"):
        module.train_blocks()
    with pytest.raises(ValueError, match="data.held_out=0.99"):
        Sudoku(4, train=None, valid=None, held_out=0.99).puzzles("train")
    with pytest.raises(ValueError, match="data.train must be a number"):
        Maze(7, train=None, valid=3).puzzles("train")
    with pytest.raises(ValueError, match="lower data.train"):
        Arithmetic(digits=1, train=50, valid=3).puzzles("train")


def test_a_key_that_a_puzzle_does_not_take_names_the_nearest():
    for kind, key, near in (
        (Maze, "sise", "size"),
        (Maze, "trian", "train"),
        (Arithmetic, "digit", "digits"),
        (Countdown, "target", "targets"),
        (Permutation, "clue", "clues"),
        (Sudoku, "held_uot", "held_out"),
    ):
        with pytest.raises(ValueError, match=f"^data.{key}: {kind.__name__} takes no {key}; did you mean data.{near}"):
            check(kind, {"train": 9, "valid": 9, key: 1}, "data")


def test_fingerprints_tell_puzzles_apart():
    prints = [Sudoku(4, train=None, valid=None, **o).fingerprint() for o in ({}, {"seed": 1}, {"clues": 8}, {"held_out": 0.0})]
    assert all(isinstance(p, dict) for p in prints) and all(prints[0] != p for p in prints[1:])
    here, there = (Sudoku(4, train=None, valid=None, cache_dir=Path(name)).fingerprint() for name in ("a", "b"))
    assert here == there and issubclass(Sudoku, Corpus)


def test_the_task_of_the_documentation_works():
    from outside_task import Palindromes

    corpus = Palindromes(10, train=10, valid=4, held_out=0.4)
    for split in ("train", "valid"):
        for givens, answer in corpus.puzzles(split):
            assert corpus.rules.check(givens, answer, answer) == (True, True, True)
            assert not corpus.rules.check(givens, "ab" * 5, answer).valid
    module = TextDataModule(corpus, CharacterTokenizer(), 10, global_batch_size=2)
    assert module.train_blocks().row(0).weight.tolist() == [0] * 5 + [1] * 5
