"""scripts/compare.sh: one budget for all, resumable part by part, and one report at the end."""

import os
import re

import pytest
from launching import run_script
from tasks.running import command, write_corpus

GRIDS = ("ar", "mdlm", "duo", "dfm", "kl_flow", "flm", "fmlm")
CLUES = ("ar", "ar_in_place", *GRIDS[1:])
MODELS = ("ar", "mdlm", "duo", "flm", "fmlm")


def folder_of(call: list[str]) -> str:
    """The last part of hydra.run.dir."""
    (folder,) = [argument.partition("=")[2] for argument in call if argument.startswith("hydra.run.dir=")]
    return folder


def test_one_budget_for_all_and_a_report_at_the_end(tmp_path):
    done, calls = run_script(
        "compare.sh", tmp_path, "optim.lr=1e-3", "data=x y", OUT=str(tmp_path / "out"), BUDGET="30", PUZZLE="optim.lr=3e-3"
    )
    assert done.returncode == 0, done.stderr
    trainings, rest, puzzle = calls[:5], calls[5:19], calls[19:-3]
    assert [call[0] for call in trainings] == [f"experiment=pydoc_{model}" for model in MODELS]
    assert all("trainer.max_steps=30" in call and call[-3:-1] == ["optim.lr=1e-3", "data=x y"] for call in trainings)
    assert "algo.curriculum_end=15" in trainings[2]
    assert f"algo.teacher_path={tmp_path}/out/seed1/flm/checkpoints/last.ckpt" in trainings[4]
    modes = [(call[0].removeprefix("mode="), re.search(r"out/seed1/(\w+)/checkpoints", " ".join(call))[1]) for call in rest]
    evaluated = [(mode, model) for model in MODELS for mode in ("sample_eval", "frontier")]
    assert modes == [*evaluated, *(("ppl_eval", model) for model in MODELS[:4])]
    names = [*(f"sudoku4_{model}" for model in GRIDS), *(f"sudoku4_clues_{model}" for model in CLUES)]
    assert [call[0] for call in puzzle[::2]] == [f"experiment={name}" for name in names]
    for call, name in zip(puzzle[::2], names, strict=True):
        task, _, model = name.rpartition("_")
        assert "optim.lr=3e-3" in call and "data=x y" not in call
        teacher = f"algo.teacher_path={tmp_path}/out/seed1/{task}_flm/checkpoints/last.ckpt"
        assert (teacher in call) == (model == "fmlm")
    assert all(call[0] == "mode=solve_eval" for call in puzzle[1::2])
    for call, task, models in ((calls[-3], "sudoku4", GRIDS), (calls[-2], "sudoku4_clues", CLUES)):
        assert call[0] == "mode=side_by_side"
        assert call[-1].count(f"evaluation/{task}_") == len(models), call[-1]
    assert calls[-1][:2] == ["mode=report", f"report.inputs=[{tmp_path}/out]"]
    assert len({folder_of(call) for call in calls}) == len(calls)


def test_more_seeds_and_tasks_come_on_top(tmp_path):
    out = {"OUT": str(tmp_path / "out")}
    _, first = run_script("compare.sh", tmp_path, TASKS="sudoku4", **out)
    assert len(first) == 2 * 7 + 2 and first[-2][-1].count("seed1") == 7
    _, more = run_script("compare.sh", tmp_path, TASKS="sudoku4", SEEDS="1 2", **out)
    assert len(more) == 2 * 7 + 2 and all("seed=2" in call for call in more[:-2])
    assert more[-2][-1].count("seed1") == more[-2][-1].count("seed2") == 7
    done, calls = run_script("compare.sh", tmp_path, TASKS="sudoku5", **out)
    assert done.returncode == 1 and not calls
    assert done.stderr == "error: TASKS must be some of text, sudoku4, sudoku4_clues, not sudoku5\n"


def test_it_goes_on_where_it_stopped(tmp_path):
    out = {"OUT": str(tmp_path / "out")}
    _, calls = run_script("compare.sh", tmp_path, **out)
    fails_at_flm = 'for a in "$@"; do [ "$a" != experiment=pydoc_flm ] || exit 5; done\n'
    again = {"OUT": str(tmp_path / "again")}
    done, before = run_script("compare.sh", tmp_path, stub=fails_at_flm, **again)
    assert done.returncode == 5 and len(before) == 3
    done, after = run_script("compare.sh", tmp_path, **again)
    assert done.returncode == 0
    assert [call[0] for call in before + after] == [call[0] for call in calls]  # nothing twice, nothing left out
    done, third = run_script("compare.sh", tmp_path, **again)
    assert done.returncode == 0 and [call[0] for call in third] == ["mode=side_by_side"] * 2 + ["mode=report"]


def test_another_question_does_not_get_old_answers(tmp_path):
    out = {"OUT": str(tmp_path / "out")}
    run_script("compare.sh", tmp_path, **out)
    for arguments, variables in (
        (["seed=2"], {}),
        ([], {"BUDGET": "7"}),
        ([], {"PUZZLE": "seed=2"}),
        ([], {"EVALUATION": "seed=2"}),
    ):
        done, calls = run_script("compare.sh", tmp_path, *arguments, **out, **variables)
        assert done.returncode == 1 and calls == []
        assert done.stderr.startswith(f"error: {tmp_path}/out holds a comparison with budget 2800")


@pytest.mark.slow
def test_all_five_models_end_in_one_report(tmp_path, monkeypatch):
    """The commands of the script, each run with a tiny model and few steps of everything."""
    corpus, out = write_corpus(tmp_path / "corpus"), tmp_path / "out"
    small = ["debug=tiny", "data=text", f"data.path={corpus}", "data.valid_fraction=0.2", "lr_scheduler.warmup_steps=1"]
    small += ["callbacks.progress=null", "callbacks.generation=null"]
    measured = "loader.eval_batch_size=4 eval.max_examples=8 eval.pilot_draws=0 eval.draws_per_example=1"
    puzzle = "model.hidden_size=16 trainer.max_steps=4 trainer.val_check_interval=4 callbacks.generation=null"
    options = {"OUT": str(out), "BUDGET": "12", "EVALUATION": measured, "PUZZLE": puzzle}
    done, calls = run_script("compare.sh", tmp_path, *small, **options)
    assert done.returncode == 0
    fewer = {"sampling.steps=": "[1,4]", "frontier.steps=": "[1,4]", "frontier.temperature=": "[0.7,1.3]"}
    for call in calls:
        call = [next((key + value for key, value in fewer.items() if item.startswith(key)), item) for item in call]
        assert command(monkeypatch, *call) == 0, call
    tables = (out / "report" / "tables.md").read_text()
    (heading,) = re.findall(r"## comparison\n\n\| (.*) \|\n", tables)
    rows = re.search(r"## comparison\n\n.*\n.*\n((?:\|.*\n)+)", tables)[1].splitlines()
    cells = {
        row.split("|")[1].strip(): dict(zip(heading.split(" | "), map(str.strip, row.split("|")[1:-1]), strict=True))
        for row in rows
    }
    assert set(cells) == set(MODELS)
    for model, row in cells.items():
        assert row["steps trained"] == "12" and row["training tokens per second"]
        steps = "32 steps" if model == "ar" else "4 steps"
        assert row[f"ppl, {steps}"] and row[f"ms per sample, {steps}"]
        assert bool(row["bits per character"]) == (model != "fmlm")
    assert cells["ar"]["which is"] == "exact" and "upper bound" in cells["duo"]["which is"]
    assert (out / "report" / "figures" / "comparison.png").stat().st_size > 5000
    assert os.listdir(out / "data")  # tokens, made once for all
