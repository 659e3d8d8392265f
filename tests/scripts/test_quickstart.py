"""scripts/quickstart.sh: both tasks trained, measured and reported; a failure in the background ends it."""

import os
import time

import pytest
from launching import run_script

MODELS = ("flm", "fmlm", "mdlm", "duo", "ar")
TEXT = "experiment=pydoc_flm_fitted", "experiment=pydoc_fmlm_fitted"


def test_both_tasks_end_in_one_report(tmp_path):
    done, calls = run_script("quickstart.sh", tmp_path, "trainer.max_steps=7", OUT=str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    trainings = [call for call in calls if call[0].startswith("experiment=")]
    assert all(call[-1] == "trainer.max_steps=7" for call in trainings)  # what the user gives comes last
    puzzle = [call[0] for call in trainings if "sudoku4" in call[0]]
    assert puzzle == [f"experiment=sudoku4_{model}" for model in MODELS]
    assert [call[0] for call in trainings if "pydoc" in call[0]] == list(TEXT)
    for name, teacher in (("sudoku4_fmlm", "sudoku4_flm"), ("pydoc_fmlm_fitted", "flm")):
        (call,) = [call for call in trainings if call[0] == f"experiment={name}"]
        assert f"algo.teacher_path={tmp_path}/out/{teacher}/checkpoints/last.ckpt" in call
    modes = [call[0] for call in calls if call[0].startswith("mode=")]
    assert modes == ["mode=solve_eval"] * 5 + ["mode=side_by_side"] + ["mode=sample_eval"] * 2 + ["mode=report"]
    assert "more minutes" in done.stdout


def test_what_fails_in_the_background_is_said(tmp_path):
    fails = f'for a in "$@"; do [ "$a" != {TEXT[1]} ] || {{ echo no teacher >&2; exit 5; }}; done\n'
    done, calls = run_script("quickstart.sh", tmp_path, stub=fails, OUT=str(tmp_path / "out"))
    assert done.returncode == 1 and "no teacher" in done.stderr
    assert not any(call[0] == "mode=report" for call in calls)


def test_what_fails_in_front_leaves_nothing_running(tmp_path):
    """The training on text is a child of a child of the script."""
    slow = f'for a in "$@"; do [ "$a" != {TEXT[0]} ] || {{ echo $$ > "{tmp_path}/pid"; exec sleep 60; }}; done\n'
    slow += f'[ "$1" = -c ] || while [ ! -s "{tmp_path}/pid" ]; do sleep 0.05; done\n'
    fails = 'for a in "$@"; do [ "$a" != experiment=sudoku4_flm ] || exit 5; done\n'
    done, _ = run_script("quickstart.sh", tmp_path, stub=slow + fails, OUT=str(tmp_path / "out"))
    assert done.returncode == 5
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        for _ in range(6000):
            os.kill(pid, 0)
            time.sleep(0.05)
