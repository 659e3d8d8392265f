"""Many texts with holes at once: every hole gets its own tokens, whatever else is written beside it."""

import pytest
import torch

from flm.algos.algorithm import Algorithm
from flm.data.tokenizers import ByteTokenizer
from flm.tasks.fillings import Writer, holes_of

END = 256


class Copies(Algorithm):
    """Writes into every editable position the number of given tokens before it, and remembers what it was asked."""

    def __init__(self):
        super().__init__(257, 16)
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
    answers = Writer(algorithm, tokenizer, {}, batch, 0)(requests, 2, 1)
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
