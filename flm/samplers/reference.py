"""What options the samplers of an algorithm take, read off their signatures and docstrings."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from flm.annotations import describe, shown
from flm.schema import signature_of


@dataclass(frozen=True)
class Option:
    """One option: what is allowed, what it is if left out, what it does, and which solvers take it (empty: all)."""

    name: str
    allowed: str
    default: str
    meaning: str
    solvers: tuple[str, ...] = ()


def options_of(samplers: Mapping[str, Callable[..., Any]]) -> list[Option]:
    """The options of `Algorithm.samplers`, in the order in which signatures have them; the choice of a solver first."""
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
    """Option and text of the Args sections of a sampler's classes."""
    kind = getattr(sampler, "kind", sampler)
    kind = kind.func if isinstance(kind, partial) else kind
    for owner in reversed(getattr(kind, "__mro__", (kind,))):
        section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", inspect.cleandoc(owner.__doc__ or ""), re.MULTILINE)
        for names, text in re.findall(r"^    ([\w, ]+): (.*(?:\n {6,}.*)*)", section[1] if section else "", re.MULTILINE):
            if not text.startswith("as in "):
                yield from ((name.strip(), " ".join(text.split())) for name in names.split(","))
