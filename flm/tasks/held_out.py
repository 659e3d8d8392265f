"""Held-out text that a checkpoint is scored on, cut and tokenised as it was trained."""

from typing import Any

import hydra
from omegaconf import DictConfig

from flm.algos.algorithm import Algorithm
from flm.checkpoints.model_file import ModelSource
from flm.data.corpora.corpus import Corpus
from flm.data.corpora.text import TextCorpus
from flm.data.module import TextDataModule
from flm.data.tokenizers import Tokenizer, TokenizerBuilder
from flm.tasks.real_text import recorded_corpus


def check_real_data(config: DictConfig, mode: str) -> None:
    """Raises ValueError unless eval.real_data names a text."""
    if config.eval.real_data not in ("recorded", "current"):
        raise ValueError(f"eval.real_data must be recorded or current for mode={mode}, not {config.eval.real_data}")


def held_out_data(config: DictConfig, file: ModelSource, tokenizer: Tokenizer, algorithm: Algorithm) -> TextDataModule:
    """The text that eval.real_data names, tokenised; of a recorded corpus that is not to be had, says what to do."""
    if config.eval.real_data == "current":
        return data_of(corpus_of(config.data, "data"), tokenizer, algorithm, config)
    try:
        corpus = recorded_corpus(file.config.get("data"), config.eval.trusted_modules)
        corpus.cache_dir = config.data.get("cache_dir")  # a file that may come from anyone does not say where to write
        data = data_of(corpus, tokenizer, algorithm, config)
        data.prepare()
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{reason}; name the text anew with eval.real_data=current and data=...") from error
    return data


def corpus_of(node: Any, key: str) -> Corpus:
    # a bare path: all of its text is held-out text
    corpus = TextCorpus(node, valid_path=node) if isinstance(node, str) else hydra.utils.instantiate(node)
    if not isinstance(corpus, Corpus):
        raise ValueError(f"{key}: {node} is no corpus: give a path, or a node with the _target_ of one")
    return corpus


def data_of(corpus: Corpus, tokenizer: Tokenizer, algorithm: Algorithm, config: DictConfig) -> TextDataModule:
    return TextDataModule(
        corpus,
        _Given(tokenizer),
        length=algorithm.length,
        seed=config.seed,
        eval_batch_size=config.loader.eval_batch_size,
        num_workers=config.loader.num_workers,
        max_eval_examples=config.eval.max_examples,
    )


class _Given(TokenizerBuilder):
    """The checkpoint's tokenizer, whatever the text."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def build(self, documents, cache_dir=None, source=None) -> Tokenizer:
        return self.tokenizer
