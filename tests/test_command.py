"""The command `flm`: modes, texts and what wings add, from one place."""

import json
import re
import sys

from running import command, tiny, write_corpus

from flm import config_files
from flm.__main__ import help_text, main, mode_names


def test_help_names_every_mode_command_and_option():
    text = help_text()
    for mode, line in config_files.options("mode").items():
        assert line, f"configs/mode/{mode}.yaml: its first comment should say what it does"
        assert re.search(rf"^  {mode.removesuffix('_eval')} +{re.escape(line[:30])}", text, re.M)
    below = text[text.index("Groups of the config") :]
    for group, options in config_files.groups().items():
        listed = re.search(rf"^  {group} +((?:.|\n {{20}})*)", below, re.M)[1]
        assert re.split(r",\s+", listed.strip()) == options
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
        ("demo",): "needs a model",
    }.items():
        assert main(list(arguments)) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and says in error and error.count("\n") == 1


def test_short_names_are_unambiguous():
    names = mode_names()
    assert names["sample"] == names["sample_eval"] == "sample_eval"
    assert not set(names) & {"generate", "infill", "nll", "serve", "demo"}
