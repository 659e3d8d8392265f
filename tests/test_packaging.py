"""What an installation brings: ranges that hold what was tested, and configs that travel with the package."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import flm

ROOT = Path(__file__).resolve().parents[1]


def requirements(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def lock() -> dict[str, Requirement]:
    return {item.name: item for item in requirements("requirements.txt")}


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


def test_the_lock_names_all_that_comes_along_and_agrees_with_every_range():
    """From requirements.txt along what each package, in its locked version, says that it needs; torch's needs are its own."""
    held = {canonicalize_name(r.name): r for r in requirements("requirements.lock") if not r.marker or r.marker.evaluate()}
    versions = {}
    for name, item in held.items():
        (pin,) = item.specifier
        assert pin.operator == "==" and not item.url, item
        versions[name] = pin.version
    open_ends = [item for item in lock().values() if item.name != "torch"]
    seen = set()
    while open_ends:
        wanted = open_ends.pop()
        name = canonicalize_name(wanted.name)
        if name == "torch":
            continue
        assert name in versions, f"{wanted}: no version of it in requirements.lock"
        assert wanted.specifier.contains(versions[name], prereleases=True), f"{wanted}: requirements.lock has {versions[name]}"
        if (name, *wanted.extras) in seen or metadata.version(name) != versions[name]:
            continue
        seen.add((name, *wanted.extras))
        for text in metadata.requires(name) or ():
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                open_ends.append(need)
    assert len(seen) > 60
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text and "@" not in text


def test_nothing_pins_in_the_project_itself():
    """An exact version of ours would keep people from installing anything else beside it."""
    texts = project()["dependencies"] + [text for extra in project()["optional-dependencies"].values() for text in extra]
    assert not [text for text in texts if re.search(r"==|~=", text)]


def test_the_workflow_runs_on_every_python_that_is_admitted():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["tests"]["strategy"]["matrix"]["python"]
    admitted = SpecifierSet(project()["requires-python"])
    assert matrix == [f"3.{minor}" for minor in range(30) if f"3.{minor}" in admitted]
    named = {text.split(" :: ")[-1] for text in project()["classifiers"] if "Python :: 3." in text}
    assert named == set(matrix)


def test_nothing_that_runs_by_itself_names_a_host():
    """Packages come from whatever index a machine is set to."""
    for path in (".github/workflows/tests.yml", ".pre-commit-config.yaml", "pyproject.toml", "requirements.txt", "mkdocs.yml"):
        assert "://" not in (ROOT / path).read_text(encoding="utf-8"), path


def test_commit_hooks_are_ruff_of_this_environment():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repo["repo"] == "local" and all(hook["entry"].startswith("ruff ") for hook in repo["hooks"])


def test_changes_and_citation_are_of_this_version():
    assert f"## {flm.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == flm.__version__ and citation["license"] == project()["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
