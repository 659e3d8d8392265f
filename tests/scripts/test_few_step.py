"""scripts/few_step.sh: teachers before students, one time for all rows, resumable, and what was asked stays asked."""

import pytest
from launching import run_script
from tasks.running import command

FLOWS = "flm dfm fmlm fmlm_lagrangian fmlm_eulerian two_stage".split()
ROWS = [*FLOWS, *"duo duo_distill kl_flow_map kl_simplex_dmd simplex_dmd dbtm mpdc mpdc_uniform".split()]
TEACHERS = {"teacher", "two_stage_first", "kl_flow"}
READ_VIEWS = {"fmlm_lagrangian", "fmlm_eulerian", "teacher_of_views"}


def folder_of(call):
    return next(argument.partition("=")[2] for argument in call if argument.startswith("hydra.run.dir="))


def name_of(call):
    return folder_of(call).rpartition("/")[2]


@pytest.mark.parametrize("task", ["sudoku4", "pydoc"])
def test_each_row_is_trained_after_its_teachers_and_measured(task, tmp_path):
    out = str(tmp_path / "out")
    done, calls = run_script("few_step.sh", tmp_path, "optim.lr=1e-3", OUT=out, TASK=task, BUDGET="10")
    assert done.returncode == 0, done.stderr
    trainings = [call for call in calls if call[0].startswith("experiment=")]
    teachers = TEACHERS | ({"teacher_of_views"} if task == "pydoc" else set())
    assert [name_of(call) for call in trainings if name_of(call) not in teachers] == ROWS
    assert {name_of(call) for call in trainings} == {*ROWS, *teachers} and len(trainings) == len(ROWS) + len(teachers)
    seen = set()
    for call in trainings:
        assert call[0].startswith(f"experiment={task}_") and "optim.lr=1e-3" in call and "seed=1" in call
        assert ("tokenizer=bpe" in call) == ("model.neighbours=2" in call) == (task == "pydoc")  # one text for all
        for argument in call:
            if argument.startswith("algo.teacher"):
                assert argument.partition("=")[2].removesuffix("/checkpoints/last.ckpt") in seen, argument
        if task == "pydoc" and (name_of(call) in READ_VIEWS or "two_stage" in name_of(call)):
            taught_by = {word for word in "teacher teacher_of_views".split() if f"seed1/{word}/" in " ".join(call)}
            assert ("algo.reads=view" in call) == (name_of(call) in READ_VIEWS) and "teacher" not in taught_by
        seen.add(folder_of(call))
    steps = {name_of(call): int(next(a for a in call if "max_steps" in a).partition("=")[2]) for call in trainings}
    assert steps["flm"] == {"sudoku4": 245, "pydoc": 80}[task]
    assert steps["two_stage_first"] + steps["two_stage"] < steps["teacher"] < steps["flm"]
    distilled = next(call for call in trainings if name_of(call) == "duo_distill")
    rounds = next(int(a.partition("=")[2]) for a in distilled if a.startswith("algo.round_steps"))
    assert steps["duo_distill"] // rounds == 5
    measured = [call for call in calls if call[0] in ("mode=solve_eval", "mode=frontier")]
    if task == "sudoku4":
        assert [name_of(call) for call in measured] == [*ROWS[:3], "fmlm_noised", *ROWS[3:]]
        jumps, noised = measured[2:4]
        assert jumps[1] == noised[1] and "sampling.gamma=1.0" in noised and "sampling.gamma=1.0" not in jumps
    else:
        named = ", ".join(f"{name}: {out}/seed1/{name}/checkpoints/last.ckpt" for name in ROWS)
        assert len(measured) == 1 and measured[0][1] == f"frontier.checkpoints={{{named}}}"
    assert calls[-1][:2] == ["mode=report", f"report.inputs=[{out}]"]
    assert (calls[-2][0] == "mode=side_by_side") == (task == "sudoku4")


def test_texts_are_measured_anew_with_each_further_row(tmp_path):
    out = {"OUT": str(tmp_path / "out"), "TASK": "pydoc"}
    for rows, trained, measured in (("dfm", 1, 1), ("dfm", 0, 0), ("mpdc", 1, 1)):
        done, calls = run_script("few_step.sh", tmp_path, ROWS=rows, **out)
        assert done.returncode == 0, done.stderr
        assert [sum(call[0].startswith(word) for call in calls) for word in ("experiment=", "mode=frontier")] == [
            trained,
            measured,
        ]
    both = next(call for call in calls if call[0] == "mode=frontier")
    assert "seed1/dfm/" in both[1] and "seed1/mpdc/" in both[1]
    assert not any("gamma" in argument for argument in both)  # which no sampler of these takes: the frontier would refuse it
    with_map = run_script("few_step.sh", tmp_path, ROWS="fmlm", **out)[1]
    assert "frontier.sweep={gamma: [0, 1]}" in next(call for call in with_map if call[0] == "mode=frontier")


def test_it_goes_on_with_more_seeds_of_some_rows(tmp_path):
    out = {"OUT": str(tmp_path / "out"), "ROWS": "fmlm simplex_dmd"}
    done, first = run_script("few_step.sh", tmp_path, **out)
    assert done.returncode == 0 and [name_of(call) for call in first[:2]] == ["teacher", "fmlm"] and len(first) == 7
    fails = 'for a in "$@"; do [ "$a" != seed=2 ] || exit 5; done\n'
    done, calls = run_script("few_step.sh", tmp_path, stub=fails, SEEDS="1 2", **out)
    assert done.returncode == 5 and calls == []
    done, more = run_script("few_step.sh", tmp_path, SEEDS="1 2", **out)
    assert done.returncode == 0 and len(more) == 7 and all("seed=2" in call for call in more[:5])
    assert more[-2][1].count("evaluation/fmlm") == more[-2][1].count("evaluation/simplex_dmd") == 2


def test_what_is_wrong_is_said_at_once(tmp_path):
    out = {"OUT": str(tmp_path / "out")}
    for variables, message in (
        ({"TASK": "chess"}, "error: TASK must be sudoku4 or pydoc, not chess\n"),
        ({"ROWS": "gan"}, "error: ROWS has no gan\n"),
    ):
        done, calls = run_script("few_step.sh", tmp_path, **out, **variables)
        assert done.returncode == 1 and not calls and done.stderr == message
    done, calls = run_script("few_step.sh", tmp_path, "seed=2", **out)
    assert done.returncode == 1 and not calls and "holds a comparison with task sudoku4, budget 100" in done.stderr


@pytest.mark.slow
def test_every_row_ends_in_the_report(tmp_path, monkeypatch):
    """The commands of the script on the puzzle, with a tiny model and few steps of everything."""
    small = ["model.hidden_size=16", "model.num_blocks=1", "trainer.log_every_n_steps=1", "trainer.limit_val_batches=1"]
    done, calls = run_script("few_step.sh", tmp_path, *small, OUT=str(tmp_path / "out"), BUDGET="1")
    assert done.returncode == 0, done.stderr
    for call in calls:
        assert command(monkeypatch, *call, *(["solve_eval.written=20"] if call[0] == "mode=solve_eval" else [])) == 0, call
    tables = (tmp_path / "out" / "report" / "tables.md").read_text()
    assert all(f" {name} " in tables for name in [*ROWS, "fmlm_noised"])
