import pytest
from code_files import HUMAN_EVAL, INFILLING, MBPP, write

from flm.code.cell import seccomp
from flm.code.problems import Hole, hide_lines, load_problems, program_in
from flm.code.sandbox import Limits, Sandbox

FILES = {"human_eval.jsonl": HUMAN_EVAL, "infilling.jsonl.gz": INFILLING, "mbpp.jsonl": MBPP}


@pytest.fixture(scope="module")
def sandbox():
    if not seccomp.supported():
        pytest.skip("generated code is only run where it can be confined")
    return Sandbox(Limits(cpu_seconds=2, wall_seconds=30))


def load(tmp_path, name, **options):
    return load_problems(write(tmp_path / name, FILES[name]), **options)


@pytest.mark.parametrize("name", FILES)
def test_references_pass_and_nothing_does_not(sandbox, tmp_path, name):
    problems = load(tmp_path, name)
    assert len(problems) == len(FILES[name])
    verdicts = sandbox.run_all([problem.program(problem.solution) for problem in problems], workers=2)
    assert all(verdict.passed for verdict in verdicts), verdicts
    empty = sandbox.run_all([problem.program([""] * len(problem.solution)) for problem in problems])
    assert not any(verdict.passed for verdict in empty)
    hidden = hide_lines(problems, 0.6, 1)
    assert all(verdict.passed for verdict in sandbox.run_all([problem.program(problem.solution) for problem in hidden]))


def test_programs_are_put_together_in_order(tmp_path):
    (problem,) = load(tmp_path, "infilling.jsonl.gz")
    assert not problem.is_continuation and problem.solution == ["        found = item\n"]
    whole = HUMAN_EVAL[2]["prompt"] + HUMAN_EVAL[2]["canonical_solution"]
    assert problem.source(problem.solution) == whole == problem.program(["x"]).reference
    assert problem.source(["X"]) == whole.replace("        found = item\n", "X")
    first = load(tmp_path, "human_eval.jsonl")[0]
    assert first.is_continuation and first.program([" pass"]).source == HUMAN_EVAL[0]["prompt"] + " pass"


def test_helpers_belong_to_the_reference(sandbox, tmp_path):
    """The prompt's own `area` measures the answer, whatever the completion makes of it."""
    problem = load(tmp_path, "human_eval.jsonl")[1]
    forged = "    return 0.0\n\ndef area(r):\n    return 3.0\nclass math:\n    fabs = staticmethod(lambda x: 0)\n"
    verdict = sandbox.run(problem.program([forged]))
    assert verdict.passed and verdict.suspicious


def test_mbpp_names_what_it_asks_of_the_program(tmp_path):
    problems = load(tmp_path, "mbpp.jsonl")
    assert [problem.remote for problem in problems] == [("hi",), ("Node", "height"), ("sort",)]
    assert "\r" not in "".join(problem.source(problem.solution) + problem.test for problem in problems)
    prompt = problems[0].pieces[0]
    scope = {}
    exec("text = " + prompt.strip(), scope)
    assert "with a \\ behind it" in scope["text"] and "assert hi('you') == 'hi you\\\\'" in scope["text"]


def test_shots_are_solved_tasks_before_the_prompt(sandbox, tmp_path):
    problems = load(tmp_path, "mbpp.jsonl", shots=1)
    plain = load(tmp_path, "mbpp.jsonl")
    for problem, bare in zip(problems, plain, strict=True):
        assert problem.pieces[0].endswith(bare.pieces[0]) and "def hi(name)" in problem.pieces[0]
    assert all(verdict.passed for verdict in sandbox.run_all([problem.program(problem.solution) for problem in problems]))
    with pytest.raises(ValueError, match="shots=2"):
        load(tmp_path, "mbpp.jsonl", shots=2)  # task 3 is not there
    with pytest.raises(ValueError, match="only MBPP"):
        load(tmp_path, "human_eval.jsonl", shots=1)


def test_stops_end_a_continuation(tmp_path):
    problem = load(tmp_path, "human_eval.jsonl")[0]
    assert problem.cut("    return 1\n\ndef other():\n    pass\nprint(1)") == "    return 1\n"
    assert problem.cut("    return 1\nif x:\n\ndef") == "    return 1" and problem.cut("    x\n") == "    x\n"


@pytest.mark.parametrize(("share", "count"), [(0.0, 1), (0.34, 1), (0.67, 2), (1.0, 3)])
def test_hidden_lines(tmp_path, share, count):
    problems = load(tmp_path, "human_eval.jsonl")
    seen = set()
    for seed in range(20):
        problem = problems[2].with_hidden_lines(share, seed)
        assert sum(isinstance(piece, Hole) for piece in problem.pieces) == count == len(problem.solution)
        assert problem.source(problem.solution) == problems[2].source(problems[2].solution)
        assert all(text.strip() and "\n" not in text for text in problem.solution)
        seen.add(tuple(problem.solution))
    assert len(seen) == (1 if count == 3 else 3)
    assert problems[1].with_hidden_lines(1.0, 0).solution == ["    r = math.sqrt(a / math.pi)", "    return r"]  # no blank line
    with pytest.raises(ValueError, match="hidden_lines"):
        hide_lines(problems, 1.1, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": 1}, "neither HumanEval"),
        ({**HUMAN_EVAL[0], "test": None}, 'line 1: needs a string under "test"'),
        ({**MBPP[0], "test_list": []}, "test_list"),
        ({**MBPP[0], "code": "def ("}, "no Python"),
    ],
)
def test_files_of_no_known_format(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        load_problems(write(tmp_path / "x.jsonl", [row]))


F = "def f(x):\n    return x\n"
PY = f"```python\n{F}```"


@pytest.mark.parametrize(
    "answer",
    [
        F,
        f"Here:\r\n{PY}".replace("\n", "\r\n"),
        f"```python\n{F}",  # not closed
        f"Use ```f``` like so:\n{PY}",
        f"First\n```bash\npip install x\n```\nthen\n{PY}",
        f"It does\n```\n>>> f(1)\n1\n```\n{PY}",
        f"```python\nimport math\n```\nand\n{PY}",
        PY.replace("```", "~~~"),
        PY.replace("```", "````"),
        "1. So:\n   " + PY.replace("\n", "\n   "),
        PY.replace("    return", '    """Says\n\n    ```\n    f(1)\n    ```\n    """\n    return'),
        f"<think>Perhaps\n```python\ndef f(x):\n    return 0\n```\n</think>\n\n{PY}",
        f"{PY}\nor, worse,\n```python\ndef f(x):\n    return 0\n```",
    ],
)
def test_the_program_is_found_in_answers_of_all_sorts(answer):
    found = {}
    exec(program_in(answer), found)
    assert found["f"](7) == 7


def test_a_question_is_answered_with_a_program_that_the_tests_run_on(sandbox, tmp_path):
    problems = [problem.as_question() for problem in load(tmp_path, "human_eval.jsonl")]
    assert "```python\n" + HUMAN_EVAL[0]["prompt"].rstrip() in problems[0].question
    answers = [
        f"Here it is:\n```python\n{p.solution[0]}\nprint('an example')\n```\nThat is all.\n```python\n1/0\n```"
        for p in problems
    ]
    programs = [p.program([p.cut(answer)]) for p, answer in zip(problems, answers, strict=True)]
    assert not any("an example" in program.source for program in programs)
    assert all(verdict.passed for verdict in sandbox.run_all(programs, workers=2))
    wrong = [p.program([p.cut("```\ndef nothing():\n    pass\n```")]) for p in problems]
    assert not any(verdict.passed for verdict in sandbox.run_all(wrong, workers=2))
    assert problems[0].cut("no (python") == "no (python" and problems[0].cut("```py\nx = 1") == "x = 1\n"
    with pytest.raises(ValueError, match=r"code_eval.chat=true.*holes"):
        load(tmp_path, "infilling.jsonl.gz")[0].as_question()
