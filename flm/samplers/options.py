"""Options of an algorithm's sampler, checked against the signature of the sampler they choose."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from flm.annotations import shown
from flm.schema import check, nearest


class _Algorithm(Protocol):
    samplers: Mapping[str, Callable[..., Any]]

    def sampler(self, **options: Any) -> Any: ...


def sampler_for(algorithm: _Algorithm, options: Mapping[str, Any], path: str = "") -> Any:
    """The sampler of an algorithm with the given options.

    Args:
        options: without those that are left to the sampler.
        path: of the options in errors: "sampling", or empty for bare names.

    Raises:
        ValueError: there is no such option or solver, a value is out of range, or options contradict each other.
    """
    check_options(algorithm, options, path)
    try:
        return algorithm.sampler(**options)
    except TypeError as error:  # of an algorithm with a method of its own
        raise ValueError(f"{path or 'sampler'}: no such option for {type(algorithm).__name__}: {error}") from error


def check_options(algorithm: _Algorithm | type, options: Mapping[str, Any], path: str = "") -> None:
    """Raises ValueError unless each option is one of the chosen sampler's and in range. An algorithm's class will do."""
    solvers = algorithm.samplers
    if not solvers:  # it makes its sampler itself, and is asked
        return
    prefix = f"{path}." if path else ""
    options = dict(options)
    if "" in solvers:
        solver = ""
    else:
        solver = options.pop("solver", next(iter(solvers)))
        if solver not in solvers:
            near = nearest(solver, solvers) if isinstance(solver, str) else ""
            raise ValueError(f"{prefix}solver must be one of {', '.join(solvers)}, not {shown(solver)}{near}")
    name = algorithm.__name__ if isinstance(algorithm, type) else type(algorithm).__name__
    check(solvers[solver], options, path, takes=f"{name} with solver={solver}" if solver else f"the sampler of {name}")
