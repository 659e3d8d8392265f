"""Which options of `sampling` each algorithm takes: for `--help`, and for docs/samplers.md."""

from collections.abc import Iterator, Mapping
from typing import Any

import hydra
from omegaconf import OmegaConf

from flm.config_files import CONFIGS
from flm.samplers.reference import Option, options_of


def sections() -> Iterator[tuple[list[str], list[Option]]]:
    """Names of algo configs that take the same options, and these."""
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
    """For a terminal."""
    lines = ["== Options of the samplers: sampling.NAME=..., more in docs/samplers.md =="]
    for names, options in sections():
        lines += ["", f"algo={', '.join(names)}"]
        lines += [f"  {option.name}: {option.allowed} ({option.default})" for option in options]
    return "\n".join(lines)
