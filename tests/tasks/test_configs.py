"""Every YAML composes and builds what it describes."""

import re
from collections.abc import Iterator
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from running import config_of, write_corpus
from tiny_qwen3 import tiny_qwen3

from flm.tasks.assemble import new_algorithm
from flm.tasks.command_line import CONFIGS
from flm.tasks.run import plain_config
from flm.tasks.train import trainer_arguments

GROUPS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())
FILES = [(group, path.stem) for group in GROUPS for path in sorted((CONFIGS / group).glob("*.yaml"))]


def required(node, path: str = "") -> Iterator[str]:
    """Keys without a value. OmegaConf's own search stops at what is interpolated from one."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield from [f"{path}{key}"] if value == "???" else required(value, f"{path}{key}.")


def fill_required(config, corpus: Path) -> None:
    """Values for what a config leaves to the user (???)."""
    values = {"path": str(corpus), "name_or_path": "gpt2"}
    for key in required(OmegaConf.to_container(config, resolve=False)):
        name = key.rpartition(".")[2]
        if name == "pretrained_path":
            values[name] = str(tiny_qwen3(corpus.parent / "qwen3", vocab_size=320, max_position_embeddings=16384))
        OmegaConf.update(config, key, values.get(name))


# what does not go with the default of another group
COMPANIONS = {("model", "golf_native"): ["algo=native_flow"], ("algo", "flow_lm"): ["model=golf_flow"]}
PACKAGES = {("experiment", "qwen3_sft_lora"): "peft"}  # optional ones that building takes


@pytest.mark.parametrize("group,name", FILES, ids=lambda value: value)
def test_yaml_composes_and_instantiates(group, name, tmp_path):
    if (group, name) in PACKAGES:
        pytest.importorskip(PACKAGES[group, name])
    corpus = write_corpus(tmp_path / "corpus", documents=3)
    config = config_of(tmp_path, f"{group}={name}", *COMPANIONS.get((group, name), []))
    fill_required(config, corpus)
    plain_config(config)  # every interpolation resolves and nothing required is missing
    hydra.utils.get_method(config.mode._target_)
    hydra.utils.instantiate(config.data)
    hydra.utils.instantiate(config.tokenizer)
    arguments = trainer_arguments(config)
    assert arguments["precision"] in ("32-true", "bf16-mixed")
    with torch.device("meta"):
        algorithm = new_algorithm(config, vocab_size=300)
    optimizer = hydra.utils.instantiate(config.optim)([(n, p) for n, p in algorithm.named_parameters() if p.requires_grad])
    if config.lr_scheduler is not None:
        hydra.utils.instantiate(config.lr_scheduler)(optimizer)
    for node in config.callbacks.values():
        if node is not None:
            hydra.utils.instantiate(node)


def test_first_line_of_an_experiment_runs_it():
    for path in (CONFIGS / "experiment").glob("*.yaml"):
        lines = path.read_text().splitlines()
        runs = rf"# python main.py (--multirun )?experiment={path.stem}\b"
        assert lines[0] == "# @package _global_" and re.match(runs, lines[1]), path
