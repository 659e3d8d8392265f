"""The command `flm`: modes, texts and what wings add, from one place."""

import json
import re
import sys

from running import command, config_of, tiny, write_corpus

import flm
from flm import config_files
from flm.__main__ import help_text, main, mode_names
from flm.tasks.check import check_config


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
    }.items():
        assert main(list(arguments)) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and says in error and error.count("\n") == 1


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
