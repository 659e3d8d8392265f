"""Many texts with holes at once: every hole gets its own tokens, whatever else is written beside it."""

from random import Random
from types import SimpleNamespace

import pytest
import torch
from code_files import HUMAN_EVAL, write

from flm.algos.algorithm import Algorithm
from flm.code.code_eval import request_of
from flm.code.problems import load_problems
from flm.conditional.conditional_eval import requests_of
from flm.data.corpora.pairs import PairCorpus
from flm.data.layouts import LineLayout, ResponseLayout
from flm.data.tokenizers import ByteTokenizer
from flm.language_model import LanguageModel
from flm.tasks.fillings import Writer, check_hole_is_bounded, holes_of, padding_of

END = 256


class Copies(Algorithm):
    """Writes into every editable position the number of given tokens before it, and remembers what it was asked."""

    def __init__(self, length=16):
        super().__init__(257, length)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.asked = []

    def sampler(self, **options):
        return lambda *_: None

    def generate(self, canvas, steps, generator, on_step=None, **options):
        self.asked.append((canvas, torch.rand((), generator=generator).item()))
        return canvas.fill(ord("a") + (~canvas.editable).cumsum(1))


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_answers_go_to_their_questions(batch):
    algorithm, tokenizer = Copies(), ByteTokenizer().build(lambda: iter(()))
    requests = [[[1, 2], 3], [[1], 2, [3], 2], [2, [5, 5, 5]], [[9] * 4, 1], [[7], 0, [8, 8, 8], 1]]
    answers = Writer(LanguageModel(algorithm, tokenizer), batch, 0)(requests, 2, 1)
    assert answers == [[["ccc"]] * 2, [["bb", "cc"]] * 2, [["aa"]] * 2, [["e"]] * 2, [["", "e"]] * 2]
    rows = [row for canvas, _ in algorithm.asked for row in canvas.tokens.tolist()]
    assert len(rows) == 10 and all(len(canvas.tokens) <= batch for canvas, _ in algorithm.asked)
    assert all(len(set(map(len, canvas.tokens.tolist()))) == 1 for canvas, _ in algorithm.asked)
    draws = [draw for _, draw in algorithm.asked]
    assert len(set(draws)) == len(draws)  # no two batches from the same noise


def test_a_slot_ends_at_its_first_end():
    tokenizer = ByteTokenizer().build(lambda: iter(()))
    row = [1, *b"ab", END, *b"c", END, 2, END, *b"d"]
    assert holes_of([[1], 5, [2], 2], row, tokenizer) == ["ab", ""]


@pytest.mark.parametrize("padding", ["target", "excluded"])
def test_holes_are_shown_as_in_training(padding, tmp_path):
    """Every canvas is what a model sees of a row in training: the same tokens given, the same to write, nothing else."""
    tokenizer, length = ByteTokenizer().build(lambda: iter(())), 160
    algorithm = Copies(length)
    lm = LanguageModel(algorithm, tokenizer)
    writer = Writer(lm, 1, 0, padding)

    (problem,) = load_problems(write(tmp_path / "code.jsonl", HUMAN_EVAL[2:]))
    prompt, response = (tokenizer.encode(HUMAN_EVAL[2][key]) for key in ("prompt", "canonical_solution"))
    lines = LineLayout(24, levels=1, padding=padding).row(prompt, response, tokenizer, length, 0, Random(0))
    writer([request_of(problem.with_hidden_lines(1, 0), tokenizer, length, None, 24, 1)], 1, 1)

    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "two?", "response": "2"}])
    corpus = PairCorpus(pairs, pairs, layout=ResponseLayout(padding))
    asked, _ = requests_of(corpus, lm, None, None if padding == "target" else "reference")
    writer([request.pieces for request in asked], 1, 1)
    whole = corpus.layout.row(tokenizer.encode("two?\n"), [ord("2")], tokenizer, length, 0, Random(0))

    for row, (canvas, _) in zip((lines, whole), algorithm.asked, strict=True):
        seen = slice(0, length if row.documents is None else int((row.documents >= 0).sum()))
        assert torch.equal(canvas.editable[0], row.weight[seen] > 0)
        given = ~canvas.editable[0]
        assert torch.equal(canvas.tokens[0][given], row.tokens[seen][given]) and given.any()


def trained_with(config, algorithm=None):
    tokenizer = ByteTokenizer().build(lambda: iter(()))
    source = SimpleNamespace(config=config, generation={"steps": 1, "options": {}})
    return LanguageModel(algorithm or Copies(), tokenizer, source)


def test_how_rows_ended_in_training():
    trained = {"data": {"layout": {"padding": "excluded"}}}
    assert padding_of(trained_with(trained)) == "excluded"
    for config in ({"data": {"path": "x"}}, {"data": None}, {}):
        assert padding_of(trained_with(config)) is None
    one_by_one = Copies()
    one_by_one.sampler = lambda **_: SimpleNamespace(steps_are_fixed=True)
    assert padding_of(trained_with(trained, one_by_one)) is None
    with pytest.raises(ValueError, match=r"eval\.new=null: .*excluded.*set eval\.new to reference"):
        check_hole_is_bounded("excluded", None, "eval.new")
    for padding, size in (("excluded", "reference"), ("excluded", 3), ("target", None), (None, None)):
        check_hole_is_bounded(padding, size, "eval.new")
