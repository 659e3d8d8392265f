"""Every command that README, docs and recipes show passes the checks that stand before its work."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from documented import ROOT, Command, commands
from running import config_of
from tiny_qwen3 import tiny_qwen3

from flm import __main__ as flm_command
from flm import text_commands
from flm.registry import entries
from flm.serving import demo, serve
from flm.tasks.check import check_config
from flm.tasks.other_names import ours

# Not commands as they stand: a part is left out, or a package of the reader's own is named.
PARTIAL = re.compile(r"experiment=\.\.\.|qwen3_\.\.\.|my_algorithm|mypackage|\|")
READ = re.compile(r"((?:\w+\.)+(?:\w*path|inputs|runs|code|checkpoints|beside))=(.*)")


def prepared_of(command: Command) -> list[str]:
    """Overrides without what stands for more of them ("[algo=...]") and what is Hydra's own; of a sweep the first value."""
    kept = [word for word in command.arguments if not word.startswith(("-", "[", "hydra"))]
    if "--multirun" in command.arguments:
        kept = [word.partition(",")[0] for word in kept]
    return [ours(word.replace("=...", "=MODEL").replace("$DATA_DIR", "DIR")) for word in kept]


def make(names: str) -> None:
    """Files that a command names, and models where a folder of one is meant."""
    for name in re.findall(r"[\w./-]+(?![\w./-]*:)", names):
        place = Path(name)
        if name in ("QWEN", "EXPORTED"):
            tiny_qwen3(place, vocab_size=320, max_position_embeddings=16384)
        elif place.suffix:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        else:
            place.mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize(("suffix", "least"), [(".md", 50), (".yaml", 60)], ids=["docs", "recipes"])
def test_documented_commands_pass_the_checks(tmp_path, monkeypatch, suffix, least):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")  # as PYTHONPATH=examples in the docs
    checked, left_out, seen = 0, [], set()
    for command in commands(suffix):
        if command.arguments in seen:
            continue
        seen.add(command.arguments)
        lacks = any("_lora" in word for word in command.arguments) and find_spec("peft") is None
        if lacks or PARTIAL.search(" ".join(command.arguments)) or "--help" in command.arguments:
            left_out.append(command.place)
            continue
        words = prepared_of(command)
        if command.program == "flm" and command.arguments[0] in {**text_commands.COMMANDS, "demo": 0, "serve": 0}:
            word, *rest = (given.strip("[]") for given in command.arguments)
            others = {"demo": demo.parser, "serve": serve.parser}
            parser = others[word]() if word in others else text_commands.parser(word)
            if rest and "..." not in rest:
                parser.parse_intermixed_args(rest)
                checked += 1
            continue
        if command.program == "flm" and command.arguments[0] in entries("commands"):  # of a wing, with a parser of its own
            left_out.append(command.place)
            continue
        if command.program == "flm":
            words = [f"mode={flm_command.mode_names()[command.arguments[0]]}", *words[1:]]
        for word in words:
            if match := READ.fullmatch(word):
                make(match.group(2))
        try:
            check_config(config_of(tmp_path / "run", *(word for word in words if word != "MODEL" and word != "...")))
        except Exception as error:
            raise AssertionError(f"{command.place}: {error}") from error
        checked += 1
    print(f"{checked} commands checked; left out: {left_out}")
    assert checked >= least


@pytest.mark.parametrize("steps", [1, 10, 100, 3000])
@pytest.mark.parametrize("schedule", ["constant_warmup", "linear_warmdown", "cosine_decay"])
def test_a_short_run_has_a_short_warm_up(tmp_path, schedule, steps):
    config = config_of(tmp_path, f"trainer.max_steps={steps}", f"lr_scheduler={schedule}")
    check_config(config)
    assert config.lr_scheduler.warmup_steps == (2500 if steps == 3000 else steps // 10)


def test_a_longer_warm_up_of_ones_own_is_told_what_to_set(tmp_path):
    config = config_of(tmp_path, "trainer.max_steps=10", "lr_scheduler.warmup_steps=11")
    with pytest.raises(ValueError, match="^lr_scheduler.warmup_steps=11 .* set lr_scheduler.warmup_steps=1, or leave it out$"):
        check_config(config)
