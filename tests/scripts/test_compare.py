"""scripts/compare.sh: one training time for all, resumable part by part, and one report at the end."""

import os
import re

import pytest
from launching import run_script
from tasks.running import command, write_corpus

MODELS = ("ar", "mdlm", "duo", "dfm", "kl_flow", "flm", "teacher", "fmlm")
TASKS = {"text": MODELS, "sudoku4": MODELS, "sudoku4_clues": ("ar", "ar_in_place", *MODELS[1:])}


def value(call: list[str], key: str) -> str | None:
    """What a call says of a key; the last word counts."""
    return dict(argument.partition("=")[::2] for argument in call).get(key)


def test_one_training_time_for_all_and_a_report_at_the_end(tmp_path):
    out = tmp_path / "out"
    done, calls = run_script(
        "compare.sh", tmp_path, "optim.lr=1e-3", "data=x y", OUT=str(out), SHARE="50", PUZZLE="optim.lr=4e-3"
    )
    assert done.returncode == 0, done.stderr
    _, whole = run_script("compare.sh", tmp_path, OUT=f"{tmp_path}/whole")
    left, at_whole = ({value(call, "hydra.run.dir").split("/", 1)[1]: call for call in one} for one in (calls, whole))
    assert len(left) == len(calls)
    folder = f"{out}/seed1"[1:]
    for task, models in TASKS.items():
        steps_by: dict[str, int] = {}
        for model in models:
            call = left.pop(f"{folder}/{task}_{model}")
            recipe = model.replace("teacher", "flm")
            if task == "text":
                fitted = "_fitted" * (recipe in ("flm", "fmlm"))
                assert call[0] == f"experiment=pydoc_{recipe}{fitted}"
                assert value(call, "optim.lr") == "1e-3" and "data=x y" in call
                # the recipes that are fitted to words say it themselves
                assert (value(call, "model.neighbours"), value(call, "tokenizer.vocab_size")) == (
                    None if model == "ar" or fitted else "2",
                    None if fitted else "1024",
                )
            else:
                assert call[0] == f"experiment={task}_{recipe}"
                assert value(call, "optim.lr") == "4e-3" and "data=x y" not in call
            steps = int(value(call, "trainer.max_steps"))
            full = at_whole[f"{tmp_path}/whole/seed1/{task}_{model}"[1:]]
            assert steps == int(value(full, "trainer.max_steps")) // 2 == int(value(call, "trainer.val_check_interval"))
            if model == "fmlm":  # it and its teacher together have the time of the others
                assert steps < steps_by["flm"] - steps_by["teacher"]
            steps_by[model] = steps
            assert value(call, "algo.curriculum_end") == (str(steps // 2) if model == "duo" else None)
            teacher = f"/{folder}/{task}_teacher/checkpoints/last.ckpt"
            assert value(call, "algo.teacher_path") == (teacher if model == "fmlm" else None)
            modes = {"": "solve_eval"}
            if task == "text":
                modes = {"_samples": "sample_eval", "_frontier": "frontier", "_likelihood": "ppl_eval"}
            if model == "teacher":
                continue
            for suffix, mode in modes.items():
                measured = left.pop(f"{folder}/evaluation/{task}_{model}{suffix}")
                assert measured[0] == f"mode={mode}"
                assert value(measured, "eval.checkpoint_path") == f"/{folder}/{task}_{model}/checkpoints/last.ckpt"
    for task in ("sudoku4", "sudoku4_clues"):
        (runs,) = [call[-1] for name, call in left.items() if name.endswith(f"side_by_side/{task}")]
        assert runs.count(f"evaluation/{task}_") == len(TASKS[task]) - 1, runs
    assert len(left) == 3 and calls[-1][:2] == ["mode=report", f"report.inputs=[{out}]"]


def test_more_seeds_and_tasks_come_on_top(tmp_path):
    out = {"OUT": str(tmp_path / "out")}
    _, first = run_script("compare.sh", tmp_path, TASKS="sudoku4", **out)
    assert len(first) == 2 * 7 + 1 + 2 and first[-2][-1].count("seed1") == 7
    _, more = run_script("compare.sh", tmp_path, TASKS="sudoku4", SEEDS="1 2", **out)
    assert len(more) == len(first) and all("seed=2" in call for call in more[:-2])
    assert more[-2][-1].count("seed1") == more[-2][-1].count("seed2") == 7
    done, calls = run_script("compare.sh", tmp_path, TASKS="sudoku5", **out)
    assert done.returncode == 1 and not calls
    assert done.stderr == "error: TASKS must be some of text, sudoku4, sudoku4_clues, not sudoku5\n"


def test_it_goes_on_where_it_stopped(tmp_path):
    out = {"OUT": str(tmp_path / "out")}
    _, calls = run_script("compare.sh", tmp_path, **out)
    fails_at_duo = 'for a in "$@"; do [ "$a" != experiment=sudoku4_duo ] || exit 5; done\n'
    again = {"OUT": str(tmp_path / "again")}
    done, before = run_script("compare.sh", tmp_path, stub=fails_at_duo, **again)
    assert done.returncode == 5
    assert [call[0] for call in before] == [call[0] for call in calls][: len(before)]
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
        ([], {"SHARE": "7"}),
        ([], {"PUZZLE": "seed=2"}),
        ([], {"EVALUATION": "seed=2"}),
    ):
        done, calls = run_script("compare.sh", tmp_path, *arguments, **out, **variables)
        assert done.returncode == 1 and calls == []
        assert done.stderr.startswith(f"error: {tmp_path}/out holds a comparison with share 100,")


@pytest.mark.slow
def test_all_seven_methods_end_in_one_report(tmp_path, monkeypatch):
    """The commands of the script, each run with a tiny model and few steps of everything."""
    corpus, out = write_corpus(tmp_path / "corpus"), tmp_path / "out"
    small = ["debug=tiny", "data=text", f"data.path={corpus}", "data.valid_fraction=0.2", "lr_scheduler.warmup_steps=1"]
    small += ["tokenizer.vocab_size=300", "trainer.max_steps=12", "callbacks.progress=null"]
    measured = "loader.eval_batch_size=4 eval.max_examples=8 eval.pilot_draws=0 eval.draws_per_example=1"
    puzzle = "model.hidden_size=16 trainer.max_steps=4 trainer.val_check_interval=4 callbacks.generation=null"
    options = {"OUT": str(out), "SHARE": "1", "EVALUATION": measured, "PUZZLE": puzzle}
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
    for model in MODELS:
        row = cells[f"text_{model}"]
        assert row["steps trained"] == "12" and row["training tokens per second"]
        steps = "32 steps" if model == "ar" else "4 steps"
        measured = (row[f"ppl, {steps}"], row[f"ms per sample, {steps}"], row["bits per character"])
        assert list(map(bool, measured)) == [model != "teacher"] * 3
    assert cells["text_ar"]["which is"] == "exact" and "upper bound" in cells["text_duo"]["which is"]
    assert (out / "report" / "figures" / "comparison.png").stat().st_size > 5000
    assert os.listdir(out / "data")  # tokens, made once for all
