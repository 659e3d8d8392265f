"""Every key of every group, found by composing and reading signatures, with values that mean nothing: one line each.

Faults: an error that is a traceback; one that names no key; a *silent* value, let pass although it is of another type than the
key's own default, or nonsense wherever it stands; a *late* error, raised when text had been read, weights made or a file
written. Values that pass the checks are run in test_no_late_error.py.
"""

import logging
import math
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from key_walk import NESTED, VALUES, changed, places
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from running import config_of
from work import watched

from flm.tasks.check import check_config, check_group
from flm.tasks.command_line import user_error

KEYS, PARTS = 1000, 8  # more than there are, and in how many parts the slow run goes
# Of all VALUES, those that each key is tried with in the ordinary run; the slow one takes them all.
FEW = ["junk", True, -1, 0.5, math.nan, ["junk"], NESTED, {"_target_": "os.getcwd"}]

# Keys whose default is of one type and which take another as well, by pattern of the end of their path; else `silent` below.
ALSO = {
    ".devices": int,  # auto, or a number
    "sampling.steps": int,  # a list, or one
    "frontier.steps": int,
    "frontier.temperature": int,
    ".entropies": float,
    "eval.protocols": str,  # a list, or one
    ".muon_on": list,  # a name, or several
    "_softcap": float,  # eval: auto, or a number
    "code_eval.hole_tokens": int,  # reference, or a number
    ".window_sizes": list,
    "strategy": dict,  # a name, or a node
}
# Keys that hold what the user likes: names of sources, parts of names, options of others.
FREE = ("data.sources", "eval.corpora", "frontier.checkpoints", "benchmark.teachers", "model.architecture", "wings")


def kind_of(value: Any) -> type:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float
    return dict if OmegaConf.is_dict(value) else list if OmegaConf.is_list(value) else type(value)


def default_of(config: DictConfig, path: str) -> Any:
    """The value that the config has, None where it is still to be given, refers to such, or is the signature's own."""
    try:
        return OmegaConf.select(config, path)
    except OmegaConfBaseException:
        return None


def is_silent(path: str, default: Any, value: Any) -> bool:
    """Whether a value that was let pass cannot mean anything there."""
    if any(path.startswith(free) for free in FREE):
        return False
    if isinstance(value, float) and not math.isfinite(value) or value is NESTED:
        return True
    if isinstance(value, dict) and value.get("_target_", "") in ("os.getcwd", "no.such.Thing", 3, None):
        return True
    if default is None or value is None:
        return False  # what may be null, and what else there may be, only the signature knows
    also = next((also for end, also in ALSO.items() if path.endswith(end)), None)
    return kind_of(value) not in (kind_of(default), float if also is int else also)


def walk(
    values: list[Any], check: Callable[[DictConfig, str], None], folder: Path, part: int = 0, parts: int = 1
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Faults by kind, and counts.

    Args:
        folder: of the runs, which none of them makes.
        part, parts: which share of the keys.
    """
    faults: dict[str, list[str]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    current: tuple[tuple[str, ...], DictConfig] | None = None
    for number, place in enumerate(places()):
        if number * parts // KEYS % parts != part:
            continue
        counts["keys"] += 1
        if current is None or current[0] != place.overrides:
            current = place.overrides, config_of(folder, *place.overrides)
        default = default_of(current[1], place.path)
        for value in values:
            counts["values"] += 1
            said = f"{' '.join(place.overrides)} {place.path}={value!r}"
            try:
                with changed(current[1], place.path, value) as config, watched(folder) as work:
                    # options of samplers are the business of the algorithm, whose group is another
                    whole = place.path == "sampling" or place.path.endswith(".options")
                    check_config(config) if whole else check(config, place.path.partition(".")[0])
            except Exception as error:
                if work.done:
                    faults["late"].append(f"{said}: {error}; before it: {work.done}")
                line = user_error(error)
                if line is None or "\n" in line:
                    faults["traceback"].append(f"{said}: {type(error).__name__}: {error}")
                elif not any(part in line for part in (place.path, *place.path.split(".")[-1:], place.path.split(".")[0])):
                    faults["names no key"].append(f"{said}: {line}")
                counts["refused"] += 1
            else:
                if is_silent(place.path, default, value):
                    faults["silent"].append(said)
    return faults, counts


def report(faults: dict[str, list[str]], counts: dict[str, int]) -> None:
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    print(f"free: {', '.join(FREE)}; of two types: {', '.join(ALSO)}")
    assert not faults, "\n".join(f"{kind}: {text}" for kind, texts in faults.items() for text in texts)


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def test_no_key_takes_nonsense(tmp_path):
    report(*walk(FEW, check_group, tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_no_key_takes_nonsense_of_any_sort(tmp_path, part):
    report(*walk(VALUES, lambda config, key: check_config(config), tmp_path / "run", part, PARTS))
