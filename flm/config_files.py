"""The YAML files of the config: where they are, and the comment at the head of each."""

import re
from pathlib import Path

_HERE = Path(__file__).resolve().parent
# inside the package in a wheel, at the top of the tree in a checkout
CONFIGS = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"
_GROUP = re.compile(r"^  - (\w+): \w+  # (.+)$", re.M)
_COMMAND = re.compile(r"^(python main\.py|flm) \S.*?: (?=\S)|^(python main\.py|flm) .*$")


def options(group: str) -> dict[str, str]:
    """Options of a config group by name, each with the first line of its comment ("" where it has none)."""
    return {path.stem: _comment(path) for path in sorted((CONFIGS / group).glob("*.yaml"))}


def groups() -> dict[str, list[str]]:
    """Config groups, each with the names of its options."""
    return {folder.name: list(options(folder.name)) for folder in sorted(CONFIGS.iterdir()) if folder.is_dir()}


def group_lines() -> dict[str, str]:
    """What each group chooses: its comment in the defaults list of config.yaml."""
    return dict(_GROUP.findall((CONFIGS / "config.yaml").read_text(encoding="utf-8")))


def own_keys(mode: str) -> list[str]:
    """Lines with the keys that a mode brings, or that are a group of its name, with their comments."""
    group = CONFIGS / mode / "default.yaml"
    text = (CONFIGS / "mode" / f"{mode}.yaml").read_text(encoding="utf-8").partition("\nhydra:")[0]
    found = [line for line in text.splitlines() if not line.startswith(("#", "mode:"))]
    if group.is_file():
        found += [f"{mode}:", *("  " + line for line in group.read_text(encoding="utf-8").splitlines() if line[:1] != "#")]
    return [line for line in found if line.strip() and "_target_" not in line]


def _comment(path: Path) -> str:
    """The first sentence of a file's leading comment, without a command (`flm ...: ` or `python main.py ...: `) before it."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        line = _COMMAND.sub("", line[1:].strip()) if not lines else line[1:].strip()
        if line:
            lines.append(line)
    return re.split(r"(?<=[.?!]) ", " ".join(lines))[0]
