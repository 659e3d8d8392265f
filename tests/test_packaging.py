"""What an installation brings: ranges that hold what was tested, and configs that travel with the package."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def lock() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {item.name: item for item in found}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_range_admits_the_version_that_was_tested():
    tested = lock()
    ranges = [Requirement(text) for text in project()["dependencies"]]
    ranges += [Requirement(text) for text in project()["optional-dependencies"]["dev"] if not text.startswith(("flm", "ruff"))]
    for extra in ("eval", "serve"):
        ranges += [Requirement(text) for text in project()["optional-dependencies"][extra]]
    for item in ranges:
        if item.name == "torch":
            continue  # installed first, for the machine
        assert item.name in tested, f"{item.name}: no tested version in requirements.txt"
        (pin,) = tested[item.name].specifier
        assert pin.operator == "==" and item.specifier.contains(pin.version), f"{item}: {pin} was tested"
    assert {"torch", *(item.name for item in ranges)} == set(tested), "requirements.txt and pyproject.toml name other packages"


def test_nothing_pins_in_the_project_itself():
    """An exact version of ours would keep people from installing anything else beside it."""
    texts = project()["dependencies"] + [text for extra in project()["optional-dependencies"].values() for text in extra]
    assert not [text for text in texts if re.search(r"==|~=", text)]
