"""Word problems answered by programs: what is cut from an answer, and what its value decides."""

import json

import pytest

from flm.code.sandbox import Sandbox
from flm.data.tokenizers import ByteTokenizer
from flm.puzzles.rules import Puzzle
from flm.puzzles.tinygsm import ProgramRules, TinyGsm, program_of

CODE = "def simple_math_problem():\n    bags = 3\n    return bags * 4"


@pytest.fixture(scope="module")
def rules():
    made = ProgramRules()
    try:
        sandbox = Sandbox()
    except ValueError as error:
        pytest.skip(str(error))
    made.use(lambda: sandbox)
    return made


@pytest.mark.parametrize(
    "answer,right",
    [
        (CODE, True),
        ("Sure!\n" + CODE, True),  # begins at the first def
        (CODE + "\nthis is no (line of code", True),  # lines at the end that do not parse are left out
        (CODE.replace("4", "5"), False),
        ("bags = 12", False),
        ("def f(:\n  return", False),
        ("def f():\n    while True: pass", False),
        ("def f():\n    return 12.0000001", True),
        ("import os\ndef f():\n    return os.getpid()", False),
        ("def f():\n    import builtins\n    builtins.abs = builtins.max = builtins.float = lambda *_: 0\n    return 7", False),
        ("def f():\n    return 'twelve'", False),
        ("def f():\n    return 10**400", False),
        ("def f():\n    class Any(float):\n        __eq__ = __le__ = lambda *_: True\n    return Any(7)", False),
    ],
)
def test_only_the_right_value_solves(rules, answer, right):
    assert rules.check("q", answer, "12") == (right, True, right)


def test_a_reference_is_a_number(rules):
    with pytest.raises(ValueError, match="is no number"):
        rules.check("q", CODE, "twelve")


def test_corpus_reads_questions_programs_and_tests(tmp_path):
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text("".join(json.dumps({"question": f"q{i}?", "code": CODE}) + "\n" for i in range(40)))
    test.write_text(json.dumps({"question": "How many?", "answer": "Three bags.\n#### 1,200"}) + "\n")
    corpus = TinyGsm(train, test, valid_fraction=0.1)
    assert len(list(corpus.pairs("train"))) + len(list(corpus.pairs("valid"))) == 40
    (puzzle,) = corpus.puzzles("valid")
    assert puzzle == Puzzle("How many?\n", "1200")
    tokenizer = ByteTokenizer().build(lambda: iter(()))
    ids, written = corpus.request(puzzle, tokenizer, 100)
    assert len(ids) == len(written) == 100 and sum(written) == 90
    row = ids[:10] + tokenizer.encode(CODE) + [tokenizer.eos_id] * 5
    assert corpus.read(row, puzzle, tokenizer) == CODE
    with pytest.raises(ValueError, match="does not fit"):
        corpus.request(puzzle, tokenizer, 10)
    test.write_text(json.dumps({"question": "How many?", "answer": "three"}) + "\n")
    with pytest.raises(ValueError, match="line 1: the answer does not end"):
        corpus.puzzles("valid")
    with pytest.raises(ValueError, match="data.test_path"):
        TinyGsm(train).puzzles("valid")
    assert program_of("Sure!\n" + CODE) == (CODE, "simple_math_problem()") and program_of("no function") is None
