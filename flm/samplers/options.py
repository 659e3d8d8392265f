"""Options of samplers, checked against the signature of the sampler that they choose."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from flm.annotations import names_tokens, shown
from flm.samplers.policy import Policy
from flm.schema import check, merged, nearest, signature_of

POLICY_OPTIONS = tuple(signature_of(Policy).parameters)


class _Algorithm(Protocol):
    samplers: Mapping[str, Callable[..., Any]]
    vocab_size: int

    def sampler(self, **options: Any) -> Any: ...


class Without:
    """A class of samplers without some of its options, where these would have no meaning.

    Args:
        kind: the class, or a partial of it.
        names: of the options that are not allowed.
    """

    def __init__(self, kind: Callable[..., Any], *names: str):
        self.kind = kind
        self.__name__ = getattr(kind, "func", kind).__name__
        self.__signature__ = merged(kind, without=names)

    def __call__(self, **options: Any) -> Any:
        return self.kind(**options)


def sampler_for(algorithm: _Algorithm, options: Mapping[str, Any], path: str = "") -> Any:
    """The sampler of an algorithm with the given options.

    Args:
        options: those that the user sets.
        path: prefix of options in errors, as "sampling"; "": bare names.

    Raises:
        ValueError: there is no such option or solver, a value is out of range, or options contradict each other.
    """
    check_options(algorithm, options, path)
    try:
        return algorithm.sampler(**options)
    except TypeError as error:  # from an algorithm that overrides `sampler`
        raise ValueError(f"{path or 'sampler'}: no such option for {type(algorithm).__name__}: {error}") from error


def check_options(algorithm: _Algorithm | type, options: Mapping[str, Any], path: str = "") -> None:
    """Raises ValueError unless each option belongs to the chosen sampler and is in range.

    `algorithm` may also be a class; then token ids are not compared with the vocabulary.
    """
    solvers = algorithm.samplers
    if not solvers:  # it overrides `sampler`, which checks its own options
        return
    prefix = f"{path}." if path else ""
    options = dict(options)
    if "" in solvers:
        solver = ""
    else:
        solver = options.pop("solver", next(iter(solvers)))
        if not isinstance(solver, str) or solver not in solvers:
            near = nearest(solver, solvers) if isinstance(solver, str) else ""
            raise ValueError(f"{prefix}solver must be one of {', '.join(solvers)}, not {shown(solver)}{near}")
    name = algorithm.__name__ if isinstance(algorithm, type) else type(algorithm).__name__
    check(solvers[solver], options, path, takes=f"{name} with solver={solver}" if solver else f"the sampler of {name}")
    if not isinstance(algorithm, type):
        _check_tokens(solvers[solver], options, algorithm.vocab_size, prefix)


def _check_tokens(sampler: Callable[..., Any], options: Mapping[str, Any], vocab_size: int, prefix: str) -> None:
    """Raises ValueError for a token id beyond the vocabulary, and if all tokens are suppressed."""
    parameters, never = signature_of(sampler).parameters, set[int]()
    for name, value in options.items():
        if names_tokens(parameters[name].annotation):
            for token in value if isinstance(value, list | tuple) else [value]:
                if token is not None and token >= vocab_size:
                    raise ValueError(f"{prefix}{name}: token id {token} is beyond the model's vocabulary of {vocab_size}")
                if name in ("suppress", "begin_suppress"):
                    never.add(token)
    if len(never) == vocab_size:
        raise ValueError(f"{prefix}suppress and begin_suppress leave none of the model's {vocab_size} tokens to write")
