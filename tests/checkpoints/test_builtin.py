"""The models in the box: small, quick to answer, and as good as their card says."""

import random
import re
import subprocess
import sys
from pydoc_data import topics

import pytest
import torch

import flm
from flm.checkpoints.hub import BOX
from flm.checkpoints.recorded_corpus import recorded_corpus
from flm.samplers.canvas import Canvas

NAMES = ("builtin:text", "builtin:puzzle")
WORDS_AT_LEAST = 0.65
SOLVED_IN_ONE, SOLVED_IN_FOUR = 0.2, 0.4


def test_both_fit_into_four_megabytes_and_the_card_tells_where_they_are_from():
    assert {f"builtin:{path.stem}" for path in BOX.glob("*.flmpack")} == set(NAMES)
    assert sum(path.stat().st_size for path in BOX.iterdir()) <= 4_000_000
    card = (BOX / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        about = card[card.index(f"## `{name}`") :].split("\n## ")[0]
        for key in ("data", "licence", "command", "date", "steps"):
            assert f"| {key} |" in about, f"{name}: the card lacks {key}"
        lm = flm.load(name)
        assert f"| steps | {lm.source.step:,} |" in about
        assert not re.search(r"['\"](/|~)", str(lm.config)), f"{name}: tells of the machine it was made on"


def test_an_answer_takes_less_than_five_seconds_of_a_core():
    """A process of its own: the imports count, and no other test has warmed anything up."""
    script = "import resource, flm\nfor name in {}:\n    flm.load(name).generate(steps=4)\n"
    script += "used = resource.getrusage(resource.RUSAGE_SELF)\nprint(used.ru_utime + used.ru_stime)"
    done = subprocess.run([sys.executable, "-c", script.format(NAMES)], capture_output=True, text=True, check=True, timeout=600)
    assert float(done.stdout) < 5 * len(NAMES)


def test_a_name_that_is_not_in_the_box_is_one_line():
    with pytest.raises(ValueError, match="builtin:txt: no such model .* builtin:puzzle, builtin:text"):
        flm.load("builtin:txt")


def test_texts_are_of_words():
    """Of the words between blanks in written texts, how many Python's manual has; their letters shuffled: far fewer."""
    lm = flm.load("builtin:text")
    known = set(words(" ".join(topics.topics.values())))
    written = [word for text in lm.generate(n=16, steps=16) for word in words(text)[1:-1]]
    shuffled = [list(word) for word in written]
    for letters in shuffled:
        random.Random(0).shuffle(letters)
    chance = sum("".join(letters) in known for letters in shuffled) / len(shuffled)
    share = sum(word in known for word in written) / len(written)
    assert share > WORDS_AT_LEAST and share > 2 * chance, (share, chance)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def test_holes_keep_what_stands_around_them():
    text = flm.load("builtin:text").infill("The [6] of the [6].", steps=8)[0]
    assert text.startswith("The ") and " of the " in text and text.endswith(".")


@pytest.mark.parametrize("steps, at_least", [(1, SOLVED_IN_ONE), (4, SOLVED_IN_FOUR)])
def test_held_out_puzzles_are_solved(steps, at_least):
    lm = flm.load("builtin:puzzle")
    corpus = recorded_corpus(lm.config["data"])
    puzzles = corpus.puzzles("valid")
    ids, holes = zip(*(corpus.request(puzzle, lm.tokenizer, lm.length) for puzzle in puzzles), strict=True)
    rows = lm.fill(Canvas(torch.tensor(ids), torch.tensor(holes)), steps).tolist()
    answers = [corpus.read(row, puzzle, lm.tokenizer) for row, puzzle in zip(rows, puzzles, strict=True)]
    solved = [corpus.rules.check(puzzle.givens, answer).solved for puzzle, answer in zip(puzzles, answers, strict=True)]
    assert sum(solved) / len(solved) > at_least, sum(solved) / len(solved)
