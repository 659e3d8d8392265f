"""mode=report on scored responses and programs, as the functions that score them write them."""

import json

import result_folders as make
from running import config_of

from flm.code.judging import summary
from flm.code.problems import Hole, Problem
from flm.code.sandbox import Verdict
from flm.conditional.responses import response_scores
from flm.report.report import report

PROBLEMS = [Problem(f"p/{i}", ("def f():\n", Hole(f"    return {i}\n")), "", ()) for i in range(2)]


def responses(folder, label, scheme, answers):
    scores = response_scores(answers, ["a b c d e", "f g h i j"])
    content = make.head("conditional_eval", label, "KLFlow", options={"scheme": scheme, "top_k": 1}, left_out=0)
    content["by_steps"] = {"8": {"file": "responses-8.jsonl", **scores}}
    return make.write(folder / "conditional_eval.json", content)


def programs(folder, label, stages):
    answers = [[["    return 0\n"]] * 2 for _ in PROBLEMS]
    found = summary(PROBLEMS, answers, [[Verdict(stage) for stage in row] for row in stages], [1, 2], 2)
    content = make.head("code_eval", label, "KLFlow", problems=2, options={}, by_steps={"64": {"file": "x", **found}})
    return make.write(folder / "code_eval.json", content)


def table(tables, name):
    """Rows by column of a table in Markdown."""
    lines = tables.split(f"## {name}\n\n")[1].split("\n\n")[0].strip().split("\n")
    columns, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def test_scores_of_responses_and_programs(tmp_path):
    right, wrong = "a b c d e", "f g h i j"
    responses(tmp_path / "in" / "a", "first", "hybrid", [[right, "a b"], ["none", wrong]])
    responses(tmp_path / "in" / "b", "second", "basic", [[right], [wrong]])
    programs(tmp_path / "in" / "c", "first", [["passed", "failed"], ["syntax", "syntax"]])
    report(config_of(tmp_path / "out", "mode=report", f"report.inputs=[{tmp_path / 'in'}]"))
    tables, html = (tmp_path / "out" / "tables.md").read_text(), (tmp_path / "out" / "report.html").read_text()

    first, second = table(tables, "responses")
    assert (first["run"], first["sampling"], first["steps"], first["prompts"], first["answers to each"]) == (
        "first", "scheme=hybrid, top_k=1", "8", "2", "2",
    )  # fmt: skip
    mean = {name: float(cell.split(" +- ")[0]) for name, cell in first.items() if "." in cell and name != "run"}
    # of five words in order two are the response's: F1 = 2 * 2 / 7
    assert mean["exact match"] == 0.5 and mean["exact match, best"] == 1
    assert mean["ROUGE-L"] == round((1 + 4 / 7 + 0 + 1) / 4, 3) and mean["ROUGE-L, best"] == 1
    assert second["corpus BLEU"] == "100.0" and second["exact match"].startswith("1.000") and second["exact match, best"] == ""

    (code,) = table(tables, "programs")
    assert code["pass@1"].startswith("0.250") and code["pass@2"].startswith("0.500") and code["problems"] == "2"
    assert code["compiled@1"].startswith("0.500") and code["exact match"].startswith("0.500")
    assert 'id="conditional-eval"' in html and 'id="code-eval"' in html and "scheme=basic, top_k=1" in html


def test_nothing_is_said_of_what_is_not_there(tmp_path):
    make.samples(tmp_path / "in")
    report(config_of(tmp_path / "out", "mode=report", f"report.inputs=[{tmp_path / 'in'}]"))
    html = (tmp_path / "out" / "report.html").read_text()
    assert 'id="conditional-eval"' not in html and 'id="code-eval"' not in html


def test_answers_that_no_model_wrote(tmp_path):
    path = programs(tmp_path / "in", "own", [["passed", "passed"], ["passed", "passed"]])
    content = json.loads(path.read_text())
    content["by_steps"] = {"reference": content["by_steps"]["64"]}
    del content["checkpoint"], content["options"], content["label"], content["algorithm"]
    make.write(path, content)
    report(config_of(tmp_path / "out", "mode=report", f"report.inputs=[{path}]"))
    (row,) = table((tmp_path / "out" / "tables.md").read_text(), "programs")
    assert row["steps"] == "reference" and row["run"] == "in" and row["pass@2"].startswith("1.000")
