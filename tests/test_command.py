"""The command `flm`: modes, texts and what wings add, from one place."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from running import command, config_of, tiny, write_corpus

import flm
from flm import config_files
from flm.__main__ import help_text, main, mode_names
from flm.tasks.check import check_config

ROOT = Path(flm.__file__).parents[1]


def test_help_names_every_mode_command_and_option():
    text = help_text()
    for mode, line in config_files.options("mode").items():
        assert line, f"configs/mode/{mode}.yaml: its first comment should say what it does"
        assert re.search(rf"^  {mode.removesuffix('_eval')} +{re.escape(line[:30])}", text, re.M)
    below = text[text.index("Groups of the config") :]
    for group, options in config_files.groups().items():
        line, listed = re.search(rf"^  {group} +(\S.*)\n((?: {{22}}.*\n?)*)", below, re.M).groups()
        assert line and re.split(r",\s+", listed.strip()) == options
    assert max(map(len, text.splitlines())) <= 100


def test_modes_run_as_they_do_through_main(tmp_path, monkeypatch, capsys):
    corpus = write_corpus(tmp_path / "corpus")
    overrides = [*tiny(corpus), "trainer.max_steps=10", f"data.cache_dir={tmp_path / 'cache'}", "logger=none"]
    monkeypatch.setattr(sys, "argv", ["flm"])
    assert main(["train", *overrides, f"hydra.run.dir={tmp_path / 'a'}"]) == 0
    assert command(monkeypatch, *overrides, f"hydra.run.dir={tmp_path / 'b'}") == 0
    capsys.readouterr()
    texts = []
    for run in ("a", "b"):
        assert main(["generate", str(tmp_path / run / "checkpoints" / "last.ckpt"), "-n", "2", "--steps", "2"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != ""
    assert main(["generate", str(tmp_path)]) == 1
    assert f"the newest run in it is {tmp_path / 'b'}\n" in capsys.readouterr().err
    assert main(["generate", str(tmp_path / "a"), "--steps", "2", "--json"]) == 0  # a run folder
    assert isinstance(json.loads(capsys.readouterr().out), str)


def test_mistakes_are_one_line(capsys):
    for arguments, says in {
        ("gnerate", "x"): "did you mean generate",
        ("nonsense",): "flm --help",
        ("generate", "/nowhere"): "/nowhere",
        ("serve", "/nowhere"): "/nowhere",
        ("demo", "a", "b"): "one model",
        ("generate", "builtin:nothing"): "builtin:text",
        ("generate", "The cat"): "The cat: no such model; a text to begin with is --prompt 'The cat'",
        ("generate", "--prompt", "a \udcff"): "half a surrogate pair",
        ("train", "corpus.txt", "debug=tiny"): "'corpus.txt' is no KEY=VALUE; your own text is data=text data.path=corpus.txt",
        ("benchmark", "RUN"): "'RUN' is no KEY=VALUE",
        ("sample", "one", "two"): "'two' is no KEY=VALUE",
        ("adapter", "/nowhere", "x"): "/nowhere",
    }.items():
        assert main(list(arguments)) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and says in error and error.count("\n") == 1


def test_a_word_behind_a_mode_is_what_it_reads(monkeypatch):
    asked = []
    monkeypatch.setattr("flm.tasks.command_line.main", lambda: asked.append(sys.argv[1:]) or 0)
    for arguments, wanted in {
        ("sample", "RUN", "sampling.steps=[1]"): ["mode=sample_eval", "eval.checkpoint_path=RUN", "sampling.steps=[1]"],
        ("solve", "builtin:puzzle"): ["mode=solve_eval", "eval.checkpoint_path=builtin:puzzle"],
        ("report", "a b", "c,d"): ["mode=report", "report.inputs=['a b', 'c,d']"],
        ("side_by_side", "é", "--cfg", "job"): ["mode=side_by_side", "side_by_side.runs=['é']", "--cfg", "job"],
        ("sample", "--cfg", "job"): ["mode=sample_eval", "--cfg", "job"],
    }.items():
        assert main(list(arguments)) == 0
        assert asked.pop() == wanted


@pytest.mark.parametrize("arguments", [["generate", "--steps", "10000000"], ["solve", "solve_eval.written=1000000"]])
@pytest.mark.parametrize("seconds", [0, 6])
def test_ctrl_c_is_one_word(arguments, seconds, tmp_path):
    """Early, while torch is imported, and at work."""
    command, environment = [sys.executable, "-m", "flm", *arguments], os.environ | {"PYTHONPATH": str(ROOT)}
    options = {"cwd": tmp_path, "env": environment, "start_new_session": True, "text": True}
    options["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a suite in the background ignores it
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)
    while run.poll() is None and "libtorch" not in Path(f"/proc/{run.pid}/maps").read_text():
        time.sleep(0.01)
    time.sleep(seconds)
    try:
        os.killpg(run.pid, signal.SIGINT)
        _, said = run.communicate(timeout=600)
    finally:
        run.kill()
    assert (run.returncode, said) == (130, "stopped\n")


@pytest.mark.parametrize("arguments", ["-m flm generate -n 400 --steps 1", "-m flm report --help", f"{ROOT}/main.py --help"])
def test_a_reader_that_has_had_enough_ends_it_quietly(arguments, tmp_path):
    line = f"{sys.executable} {arguments} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=600)  # fmt: skip
    assert done.stderr == "" and done.stdout.endswith("\n0\n")


@pytest.mark.parametrize("command", [["main.py", "--help"], ["-m", "flm", "train", "--help"], ["-m", "flm", "--help"]])
def test_help_that_nobody_reads_to_its_end_is_no_error(command):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=600)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_home_that_cannot_be_written_to_is_no_matter(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "MPLCONFIGDIR"}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": "/proc/none", "XDG_CONFIG_HOME": "/proc/none"}
    command = [sys.executable, "-m", "flm", "train", "data=text", "data.path=/nowhere"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.stderr == "error: data.path must be a file or folder that is there, not /nowhere\n"


def test_the_version_is_said(capsys):
    for word in ("--version", "version", "-V"):
        assert main([word]) == 0
        assert capsys.readouterr().out == f"flm {flm.__version__}\n"


def test_settings_of_a_callback_that_a_recipe_switched_off(tmp_path):
    recipe = ["experiment=pydoc_kl_flow_study", "debug=tiny", "callbacks.generation=null"]
    with pytest.raises(ValueError, match="callbacks.sample is switched off, and then given .*: callbacks.sample=null leaves"):
        check_config(config_of(tmp_path, *recipe))
    check_config(config_of(tmp_path, *recipe, "callbacks.sample=null"))


def test_short_names_are_unambiguous():
    names = mode_names()
    assert names["sample"] == names["sample_eval"] == "sample_eval"
    assert not set(names) & {"generate", "infill", "nll", "serve", "demo"}


def test_without_a_model_the_one_in_the_box_answers(tmp_path, monkeypatch, capsys):
    assert main(["generate", "-n", "2", "--steps", "2", "--json"]) == 0
    wanted = flm.load("builtin:text").generate(n=2, steps=2)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == wanted
    template = "The [4] of [2]."
    for arguments in ([template, "--steps", "2"], ["--steps", "2", template], ["builtin:text", "--steps", "2", template]):
        assert main(["infill", *arguments]) == 0
        assert capsys.readouterr().out == flm.load("builtin:text").infill(template, steps=2)[0] + "\n"
    monkeypatch.setattr(sys, "argv", ["flm"])
    counts = ["solve_eval.puzzles=4", "solve_eval.written=4", "sampling.steps=[2]"]
    assert main(["solve", *counts, f"hydra.run.dir={tmp_path}"]) == 0
    assert "builtin:puzzle" in capsys.readouterr().out and (tmp_path / "solve_eval.json").is_file()


def test_train_alone_is_a_whole_command_and_says_which(tmp_path, monkeypatch, capsys):
    """It would take minutes, so it is stopped where it would begin; what it begins with passes the checks of a config."""
    begun = []
    monkeypatch.setattr("flm.tasks.command_line.main", lambda: begun.append(sys.argv[1:]) or 0)
    assert main(["train"]) == 0
    said = capsys.readouterr().out
    assert "experiment=pydoc_flm_fitted" in said and "minutes" in said and "flm demo outputs/first" in said
    check_config(config_of(tmp_path, *(word for word in begun[0] if not word.startswith("hydra."))))
    assert "hydra.run.dir=outputs/first" in begun[0]


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["generate", "--nope"], "flm generate: unrecognized arguments: --nope (flm generate --help says what it takes)"),
        (["generate", "--option", "hot"], "flm generate: argument --option: 'hot' is not KEY=VALUE (flm generate --help"),
        (["generate", "--between", "-3"], "--between must be at least 1, not -3"),
        (["infill"], "flm infill: the following arguments are required: template (flm"),
        (["nll", "--draws", "x", "a"], "flm nll: argument --draws: invalid int value: 'x'"),
        (["serve", "--port", "abc"], "flm serve: argument --port: invalid int value: 'abc'"),
        (["demo", "--steps"], "flm demo: argument --steps: expected at least one argument"),
        (["join"], "flm join: the following arguments are required: folder, file"),
        (["adapter", "a"], "flm adapter: the following arguments are required: folder"),
        (["side_by_side", "."], "solve_eval.json: there is no such result file"),
    ],
)
def test_a_mistake_in_any_command_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {message}") and said.err.count("\n") == 1 and said.out == ""
    assert not list(tmp_path.iterdir())


def test_help_of_a_mode_says_first_what_it_does(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for mode, usage, key in (
        ("report", "FOLDER ... KEY=VALUE ...", "  inputs:"),
        ("solve", "MODEL KEY=VALUE ...", "  puzzles: 500  # held-out ones"),
        ("train", "KEY=VALUE ...", None),
    ):
        with pytest.raises(SystemExit):
            main([mode, "--help"])
        said = capfd.readouterr().out
        assert said.startswith(f"flm {mode}: ") and f"\nusage: flm {mode} {usage}\n" in said
        assert "powered by" not in said and "KEY=VALUE sets a value and GROUP=OPTION" in said
        assert key is None or f"\n{key}" in said.partition("KEY=VALUE sets")[0]
    assert not list(tmp_path.iterdir())
