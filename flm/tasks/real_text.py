"""Held-out text to hold samples against: as many blocks, as long, cut as the training data were."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hydra
import numpy as np
from omegaconf import DictConfig

from flm.checkpoints.model_file import ModelSource
from flm.checkpoints.moved import current
from flm.data.blocks import TokenBlocks
from flm.data.corpora.corpus import Corpus
from flm.data.frames import frame_of
from flm.data.shards import encode_documents
from flm.data.tokenizers import Tokenizer
from flm.registry import trusted

# Of the held-out split, from its start: enough to know its 3-grams, few enough to be tokenised in seconds.
MAX_TOKENS = 2_000_000


@dataclass(frozen=True)
class RealText:
    """
    Attributes:
        source: the corpus, in words.
        blocks: held-out blocks of one length, in the order of the corpus.
        chosen: indices of those to compare with, evenly spaced.
    """

    source: str
    blocks: list[list[int]]
    chosen: list[int]

    @property
    def rows(self) -> list[list[int]]:
        return [self.blocks[index] for index in self.chosen]


def real_text(config: DictConfig, file: ModelSource, tokenizer: Tokenizer, length: int, count: int) -> RealText | str:
    """Blocks from the corpus that eval.real_data names, or why there are none.

    "recorded" is the corpus of the checkpoint: its text may be elsewhere by now, which stops nothing. "current" is the
    data node of this command: there the user's mistakes are errors. None switches the comparison off.
    """
    wanted = config.eval.real_data
    if wanted is None:
        return "eval.real_data=null"
    if wanted == "current":
        return held_out_blocks(hydra.utils.instantiate(config.data), tokenizer, length, count)
    if wanted != "recorded":
        raise ValueError(f"eval.real_data must be recorded, current or null, not {wanted}")
    try:
        corpus = recorded_corpus(file.config.get("data"), config.eval.trusted_modules)
        return held_out_blocks(corpus, tokenizer, length, count)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        return f"{reason}; name the text anew with eval.real_data=current and data=..., or do without: eval.real_data=null"


def held_out_blocks(corpus: Corpus, tokenizer: Tokenizer, length: int, count: int) -> RealText:
    """`count` blocks of `length` tokens (all there are, if fewer) spread over the first MAX_TOKENS of the held-out split."""
    ids: list[int] = []
    for run in encode_documents(corpus.documents("valid"), tokenizer):
        ids += run
        if len(ids) >= MAX_TOKENS:
            break
    cut = TokenBlocks(_InMemory(ids), length, frame_of(corpus.wrap, tokenizer))
    blocks = [cut[index].tolist() for index in range(len(cut))]
    kept = min(count, len(blocks))
    return RealText(corpus.describe(), blocks, [index * len(blocks) // kept for index in range(kept)])


def recorded_corpus(node: Any, trusted_modules: Sequence[str] = ()) -> Corpus:
    """The corpus a checkpoint records. The file may come from anyone: only corpora and normalisers are built.

    Raises:
        ValueError: nothing is recorded, it names another class than a corpus of this package or of trusted modules, or
            arguments this corpus does not take.
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
    if not _inside(module_name, allowed):
        raise refusal
    try:
        found = vars(importlib.import_module(module_name)).get(name)
    except ModuleNotFoundError as error:
        raise refusal from error
    if not inspect.isclass(found) or not _inside(found.__module__, allowed):
        raise refusal
    if not callable(getattr(found, "fingerprint", None)):  # what corpora and normalisers have in common
        raise refusal
    return found


def _inside(module_name: str, allowed: Sequence[str]) -> bool:
    return any(module_name == root or module_name.startswith(f"{root}.") for root in allowed)


class _InMemory:
    """What TokenBlocks asks of a stream."""

    def __init__(self, ids: list[int]):
        self._ids = np.array(ids, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._ids[start:stop].copy()
