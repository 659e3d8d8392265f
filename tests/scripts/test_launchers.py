"""What the scripts ask of the environment, and which command each of them is."""

import shutil
import subprocess
import sys

import pytest
from launching import SCRIPTS, run_script

DATA = {"DATA_DIR": "/data/texts"}
NEEDS = {
    "flm": DATA,
    "fmlm": DATA | {"TEACHER_PATH": "/runs/flm.ckpt"},
    "flm_distill": DATA | {"TEACHER_PATH": "/runs/flm.ckpt"},
    "flm_distill_second": DATA | {"TEACHER_PATH": "/runs/first.ckpt"},
}
KL_FLOW = ("fineweb", "tinystories", "lamini", "wmt14_de_en")
EVALUATED = {"flm": "flm", "fmlm": "fmlm", "flm_distill_double": "flm_distill_second"}  # by script: experiment
LAUNCHERS = {f"train_{corpus}_{name}.sh": needs for corpus in ("lm1b", "owt") for name, needs in NEEDS.items()}
LAUNCHERS |= {f"train_{corpus}_kl_flow.sh": DATA for corpus in KL_FLOW}
LAUNCHERS |= {
    f"gen_ppl_{corpus}_{name}.sh": DATA | {"CKPT_PATH": "/runs/model.ckpt"} for corpus in ("lm1b", "owt") for name in EVALUATED
}


def test_every_launcher_is_here_and_small():
    found = {path.name for kind in ("*_lm1b_*.sh", "*_owt_*.sh", "*_kl_flow.sh") for path in SCRIPTS.glob(kind)}
    assert found == set(LAUNCHERS)
    for name in LAUNCHERS:
        lines = (SCRIPTS / name).read_text().splitlines()
        assert lines[0].startswith("#!") and lines[1].startswith("# ") and len(lines) <= 7, name


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_missing_variable_is_one_line_that_names_it_and_nothing_runs(name, tmp_path):
    needed = LAUNCHERS[name]
    for missing in needed:
        for rest in ({}, {missing: ""}):
            given = {key: value for key, value in needed.items() if key != missing} | rest
            done, calls = run_script(name, tmp_path, **given)
            assert done.returncode == 1 and calls == [] and done.stdout == ""
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"error: {missing} is not set: a ") and f"{missing}=... bash scripts/{name}" in line


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_command_is_the_experiment_with_what_was_given_last(name, tmp_path):
    needed = LAUNCHERS[name]
    done, (call,) = run_script(name, tmp_path, "optim.lr=1e-3", "a=b c", STEPS="[1,2]", **needed)
    assert done.returncode == 0, done.stderr
    assert call[-2:] == ["optim.lr=1e-3", "a=b c"] and "data.cache_dir=/data/texts" in call
    kind, recipe = name.removesuffix(".sh").replace("gen_ppl", "evaluate").split("_", 1)
    corpus, _, algo = recipe.partition("_")
    if kind == "train":
        assert f"experiment={recipe}" in call and "mode=sample_eval" not in call
        assert not any(argument.startswith("sampling.steps") for argument in call)
        if "TEACHER_PATH" in needed:
            key = "algo.teacher_g_path" if algo == "flm_distill_second" else "algo.teacher_path"
            assert f"{key}={needed['TEACHER_PATH']}" in call
    else:
        assert {"mode=sample_eval", f"experiment={corpus}_{EVALUATED[algo]}"} <= set(call)
        assert {"eval.checkpoint_path=/runs/model.ckpt", "sampling.steps=[1,2]"} <= set(call)
        _, (plain,) = run_script(name, tmp_path, **needed)
        assert not any(argument.startswith("sampling.steps") for argument in plain)


KEYS = {"DATA_DIR": ("data.cache_dir",), "CKPT_PATH": ("eval.checkpoint_path",), "TEACHER_PATH": ("algo.teacher_path",)}
SECOND_STAGE = {"TEACHER_PATH": ("algo.teacher_g_path", "algo.teacher_path_g")}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_an_override_stands_for_the_variable(name, tmp_path):
    needed = LAUNCHERS[name]
    for variable, keys in (KEYS | (SECOND_STAGE if name.endswith("_second.sh") else {})).items():
        for key in keys if variable in needed else ():
            given = {other: value for other, value in needed.items() if other != variable}
            done, (call,) = run_script(name, tmp_path, f"{key}=/a b/c", **given)
            assert done.returncode == 0, done.stderr
            assert call[-1] == f"{key}=/a b/c" and not any(argument.startswith(f"{key}=") for argument in call[:-1])
            done, calls = run_script(name, tmp_path, f"{key}=", **given)  # nothing is no value
            assert done.returncode == 1 and calls == [] and f"{variable} is not set" in done.stderr


def test_relative_paths_are_those_of_where_the_script_was_called(tmp_path):
    (tmp_path / "flm.ckpt").touch()
    _, (call,) = run_script("train_lm1b_fmlm.sh", tmp_path, DATA_DIR="/data", TEACHER_PATH="flm.ckpt")
    assert f"algo.teacher_path={tmp_path}/flm.ckpt" in call


def test_a_launcher_takes_the_place_of_python(tmp_path):
    _, (plain,) = run_script("train_lm1b_flm.sh", tmp_path, **DATA)
    stub = 'echo "started by $STARTER"\n'
    done, (call,) = run_script("train_lm1b_flm.sh", tmp_path, stub=stub, LAUNCHER="env STARTER=torchrun python", **DATA)
    assert done.stdout == "started by torchrun\n" and call == plain


def test_an_exit_status_is_passed_on(tmp_path):
    run_script("train_lm1b_flm.sh", tmp_path, **DATA)
    stub = tmp_path / "python"
    stub.write_text(stub.read_text() + "exit 7\n")
    done = subprocess.run(
        ["bash", str(SCRIPTS / "train_lm1b_flm.sh")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "FLM_VENV": "none", **DATA},
        capture_output=True,
    )
    assert done.returncode == 7


@pytest.mark.parametrize("active", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_active_environment_that_has_the_packages_is_taken_as_it_is(active, tmp_path):
    variables = DATA | {"FLM_VENV": "", active: str(tmp_path / "active")}
    done, calls = run_script("train_lm1b_flm.sh", tmp_path, **variables)
    assert done.returncode == 0 and len(calls) == 1, done.stderr


def test_an_environment_without_the_packages_is_not(tmp_path):
    """Then one is made: with the python that PYTHON names, which here only says so."""
    root = tmp_path / "checkout"  # this one may have its environment already
    shutil.copytree(SCRIPTS, root / "scripts")
    shutil.copy(SCRIPTS.parent / "requirements.txt", root)
    bare = tmp_path / "bare"
    bare.write_text(f'#!/usr/bin/env bash\n[ "$1" = -c ] && exec "{sys.executable}" "$@"\necho "made: $*"; exit 3\n')
    bare.chmod(0o755)
    empty = tmp_path / "active" / "python"
    empty.parent.mkdir()
    empty.write_text(f'#!/usr/bin/env bash\nexec "{sys.executable}" -S "$@"\n')  # -S: no installed packages
    empty.chmod(0o755)
    done = subprocess.run(
        ["bash", str(root / "scripts" / "train_lm1b_flm.sh")],
        env={"PATH": f"{empty.parent}:/usr/bin:/bin", "VIRTUAL_ENV": str(empty.parent), "PYTHON": str(bare), **DATA},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3 and "made: -m venv .venv" in done.stdout, done.stderr
