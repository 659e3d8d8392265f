"""Names of the code of MDLM, Duo and FLM on the command line: translated, or one line that names ours."""

import re

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf
from tasks.running import command, config_of

from flm.config_files import CONFIGS, groups
from flm.schema import signature_of
from flm.tasks.other_names import INSTEAD, OURS_TOO, SAME, ours
from flm.tasks.sampler_help import markdown

FOUND_ELSEWHERE = {"algo.schedule", "algo.schedule.exponent", "algo.teacher_f_path", "algo.teacher_g_path", "algo.smoothing"}
FOUND_ELSEWHERE |= {"algo.temperature_start", "algo.temperature_end", "sampling.solver", "hydra.run.dir"}
FOUND_ELSEWHERE |= {
    "model.pretrained_path",
    "tokenizer.name_or_path",
    "sampling.top_k",
    "sampling.top_p",
    "sampling.temperature",
}


def exists(key: str, config: object) -> bool:
    return key in FOUND_ELSEWHERE or OmegaConf.select(config, key, default="no") != "no"


def test_names_that_stand_for_others_exist_here(tmp_path):
    config = config_of(tmp_path)
    for theirs, name in SAME.items():
        group, _, option = name.partition("=")
        assert option in groups()[group] if option else exists(name, config), name
        assert ours(f"{theirs}=1" if not option else theirs) == (name if option else f"{name}=1")
    for line in INSTEAD.values():
        for key in re.findall(r"[a-z_0-9]+(?:\.[a-z_0-9]+)+(?![\w.]*\()", line):
            assert key.startswith("flm.") or exists(key, config), key
        for group, option in re.findall(r"\b([a-z_]+)=([a-z_0-9]+)", line):
            assert group not in groups() or option in groups()[group], line


def our_keys():
    """Every key that a file of a group spells or a class that it names takes, and the options of all samplers."""
    for name in groups():
        for path in (CONFIGS / name).glob("*.yaml"):
            config = OmegaConf.load(path)
            taken = signature_of(get_object(config["_target_"])).parameters if "_target_" in config else ()
            yield from (f"{name}.{key}" for key in {*map(str, config), *taken})
    yield from (f"sampling.{name}" for name in re.findall(r"`(\w+)`", markdown()))


def test_no_key_of_ours_is_taken_for_somebody_elses():
    keys = set(our_keys())
    assert {"sampling.noise_removal", "algo.schedule", "model.num_blocks", "data.train"} <= keys
    assert keys & {*SAME, *INSTEAD} == set(OURS_TOO)


def test_all_else_stays_as_it_is():
    for argument in (
        "optim.lr=1e-3",
        "data=lm1b",
        "data.train=200",  # of puzzles
        "data.train=null",
        "data.valid=validation",  # of data=hub
        "--multirun",
        "~callbacks.stop",
        "+data.trainer=1",
        "sampling.prompt=T=0 noise=1",
    ):
        assert ours(argument) == argument


@pytest.mark.parametrize(
    "argument,named", [("data.train=lm1b", "data=NAME"), ("noise=loglinear", "algo.schedule"), ("+T=0", "continuous time")]
)
def test_there_is_one_line(argument, named, monkeypatch, capsys):
    assert command(monkeypatch, argument) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {argument.lstrip('+').partition('=')[0]}: ") and named in line


def test_a_value_without_its_group(monkeypatch, capsys):
    """By the last part of a key, which is how other programs' files have it."""
    for argument, answer in (("max_steps=5", "did you mean trainer.max_steps?"), ("iterations=5", "a group is a mapping")):
        assert command(monkeypatch, argument, "--cfg", "job") == 1  # a flag is no override that could be wrong itself
        (line,) = capsys.readouterr().err.splitlines()
        assert (
            line.startswith(f"error: {argument.partition('=')[0]}: the config has no value of this name; ") and answer in line
        )
