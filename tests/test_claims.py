"""docs/sources.md: what it names is there."""

import itertools
import re
from pathlib import Path

from omegaconf import OmegaConf
from tasks.running import config_of

from flm.config_files import groups
from flm.tasks.other_names import SAME
from flm.tasks.sampler_help import markdown

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"`([^`]+)`", TEXT)
SWEPT = {"frontier.sweep"}  # a key that a mode brings


def expanded(name: str) -> list[str]:
    """a_{b,c}.sh as a_b.sh and a_c.sh."""
    pieces = [piece[1:-1].split(",") if piece.startswith("{") else [piece] for piece in re.findall(r"\{[^}]*\}|[^{]+", name)]
    return ["".join(parts) for parts in itertools.product(*pieces)]


def selected(modes: dict, key: str) -> bool:
    return any(OmegaConf.select(config, key, default="no") != "no" for config in modes.values())


def test_every_script_is_there():
    named = {script for text in QUOTED for name in re.findall(r"[\w{},/]+\.(?:sh|py)\b", text) for script in expanded(name)}
    scripts = {name.removeprefix("scripts/") for name in named if name.endswith(".sh") or name.startswith("scripts/")}
    assert len(scripts) >= 18
    assert not [name for name in scripts if not (ROOT / "scripts" / name).is_file()]


def test_every_option_and_key_is_there(tmp_path):
    found = [pair for text in QUOTED for pair in re.findall(r"\b([a-z_]+)=([a-z0-9_]+)\b", text) if pair[0] in groups()]
    assert len(found) >= 12
    assert not [pair for pair in found if pair[1] not in groups()[pair[0]] and pair != ("data", "openwebtext")]
    modes = {mode: config_of(tmp_path, f"mode={mode}") for mode in groups()["mode"]}
    keys = {key for text in QUOTED for key in re.findall(r"\b([a-z_]+(?:\.[a-z_]+)+)=", text)} - SWEPT - SAME.keys()
    options = {f"sampling.{name}" for name in re.findall(r"`(\w+)`", markdown())}  # which samplers bring
    assert not [key for key in keys if key.startswith("sampling.") and key not in options and not selected(modes, key)]
    keys = {key for key in keys if not key.startswith("sampling.")}
    keys -= {
        "algo.teacher_path",
        "algo.teacher_path_f",
        "algo.teacher_path_g",
        "data.path",
        "model.exclusive",
    }  # of some algorithms, corpora and models
    assert len(keys) >= 5
    assert not [key for key in keys if not selected(modes, key)]
