"""The corpus that a model file records, built again. The file may come from anyone: only corpora and their parts are built."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from flm.checkpoints.moved import current
from flm.data.corpora.corpus import Corpus
from flm.registry import inside, trusted


def recorded_corpus(node: Any, trusted_modules: Sequence[str] = ()) -> Corpus:
    """The corpus of a recorded config node.

    Raises:
        ValueError: there is no node, it names a class that is no corpus of this package or of trusted modules, or it has
            arguments that the corpus does not take.
    """
    if not isinstance(node, Mapping):
        raise ValueError("the checkpoint records no corpus")
    corpus = _built(node, trusted_modules)
    if not isinstance(corpus, Corpus):
        raise ValueError(f"the checkpoint records {node['_target_']} as its corpus, which is none")
    return corpus


def _built(value: Any, trusted_modules: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        arguments = {key: _built(item, trusted_modules) for key, item in value.items() if key != "_target_"}
        if "_target_" not in value:
            return arguments
        target = _class(value["_target_"], trusted_modules)
        try:
            inspect.signature(target).bind(**arguments)
        except TypeError as error:
            raise ValueError(f"{value['_target_']}, recorded in the checkpoint: {error}") from error
        return target(**arguments)
    return [_built(item, trusted_modules) for item in value] if isinstance(value, list | tuple) else value


def _class(target: Any, trusted_modules: Sequence[str]) -> type:
    refusal = ValueError(
        f"the checkpoint records {target!r}, which is no corpus or normaliser of this package: "
        "to allow more, name its module in eval.trusted_modules"
    )
    allowed = trusted(trusted_modules)
    module_name, _, name = current(str(target)).rpartition(".")
    if not inside(module_name, allowed):
        raise refusal
    try:
        found = vars(importlib.import_module(module_name)).get(name)
    except ModuleNotFoundError as error:
        raise refusal from error
    if not inspect.isclass(found) or not inside(found.__module__, allowed):
        raise refusal
    if not callable(getattr(found, "fingerprint", None)):  # what corpora and normalisers have in common
        raise refusal
    return found
