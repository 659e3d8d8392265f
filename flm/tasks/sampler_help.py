"""The options of `sampling` that each algorithm takes, for `--help` and docs/samplers.md."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import hydra
from omegaconf import OmegaConf

from flm.annotations import describe, shown
from flm.config_files import CONFIGS
from flm.schema import signature_of


@dataclass(frozen=True)
class Option:
    """One option of a sampler.

    Attributes:
        allowed: values, in words.
        default: as typed.
        meaning: from the docstring.
        solvers: that take it; empty: all.
    """

    name: str
    allowed: str
    default: str
    meaning: str
    solvers: tuple[str, ...] = ()


def options_of(samplers: Mapping[str, Callable[..., Any]]) -> list[Option]:
    """The options of `Algorithm.samplers` in the order of their signatures, after the option `solver` if there is a choice."""
    found: dict[tuple[str, str, str], tuple[str, list[str]]] = {}
    for solver, sampler in samplers.items():
        meanings = dict(_meanings(sampler))
        for name, parameter in signature_of(sampler).parameters.items():
            key = (name, describe(parameter.annotation), shown(parameter.default))
            found.setdefault(key, (meanings.get(name, ""), []))[1].append(solver)
    options = [
        Option(name, allowed, default, meaning, () if len(solvers) == len(samplers) else tuple(solvers))
        for (name, allowed, default), (meaning, solvers) in found.items()
    ]
    options.sort(key=lambda option: bool(option.solvers))  # those of all solvers first
    if "" in samplers:
        return options
    first = next(iter(samplers))
    return [Option("solver", f"one of {', '.join(samplers)}", first, "how positions are chosen and written"), *options]


def _meanings(sampler: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """(option, meaning) from the Args sections of a sampler's classes."""
    kind, others = sampler, []
    while not isinstance(kind, type):  # unwraps partials, `Without` and `Verifiable`
        others += [kind.also] if hasattr(kind, "also") else []
        kind = kind.func if isinstance(kind, partial) else kind.kind
    for owner in [*others, *reversed(kind.__mro__)]:
        section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", inspect.cleandoc(owner.__doc__ or ""), re.MULTILINE)
        for names, text in re.findall(r"^    ([\w, ]+): (.*(?:\n {6,}.*)*)", section[1] if section else "", re.MULTILINE):
            if not text.startswith("as in "):
                yield from ((name.strip(), " ".join(text.split())) for name in names.split(","))


def sections() -> Iterator[tuple[list[str], list[Option]]]:
    """(names of algo configs that take the same options, the options)."""
    kinds: dict[tuple[Any, ...], tuple[list[str], Mapping[str, Any]]] = {}
    for path in sorted((CONFIGS / "algo").glob("*.yaml")):
        samplers = hydra.utils.get_object(OmegaConf.load(path)._target_).samplers
        kinds.setdefault(tuple(samplers.items()), ([], samplers))[0].append(path.stem)
    for names, samplers in kinds.values():
        yield names, options_of(samplers)


def markdown() -> str:
    """The page docs/samplers.md."""
    lines = ["# Options of the samplers", "", "Made from their signatures by `python scripts/describe_samplers.py`.", ""]
    lines += [
        "On the command line `sampling.NAME=...`, in Python `lm.generate(..., NAME=...)`. Left out, or null: the default."
    ]
    lines += ["An option that the sampler does not take is an error."]
    for names, options in sections():
        lines += ["", f"## {', '.join(names)}", "", "| option | allowed | default | meaning |", "|---|---|---|---|"]
        for option in options:
            only = f" (solver={', '.join(option.solvers)})" if option.solvers else ""
            lines.append(f"| `{option.name}` | {option.allowed} | {option.default} | {option.meaning}{only} |")
    return "\n".join(lines) + "\n"


def text() -> str:
    """The options as text for a terminal."""
    lines = ["== Options of the samplers: sampling.NAME=..., more in docs/samplers.md =="]
    for names, options in sections():
        lines += ["", f"algo={', '.join(names)}"]
        lines += [f"  {option.name}: {option.allowed} ({option.default})" for option in options]
    return "\n".join(lines)
