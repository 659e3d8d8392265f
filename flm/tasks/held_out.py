"""The held-out text of an evaluation: that of the data which a model records, or of this command's `data` group."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from flm.checkpoints.recorded_corpus import recorded_corpus
from flm.data.corpora.corpus import Corpus
from flm.data.corpora.text import TextCorpus
from flm.data.documents import Split
from flm.data.module import TextDataModule
from flm.data.shards import encode_documents
from flm.data.tokenizers import Tokenizer, TokenizerBuilder
from flm.language_model import LanguageModel
from flm.tasks.assemble import instantiate
from flm.tasks.evaluation import EvalOptions

# Read from the start of the held-out split: enough for its 3-grams, and tokenised in seconds.
MAX_TOKENS = 2_000_000


@dataclass(frozen=True)
class RealText:
    """Held-out text to compare samples with.

    Attributes:
        source: description of the corpus.
        blocks: held-out rows of one length, in the order of the corpus.
        chosen: indices of the blocks to compare with, evenly spaced.
    """

    source: str
    blocks: list[list[int]]
    chosen: list[int]

    @property
    def rows(self) -> list[list[int]]:
        return [self.blocks[index] for index in self.chosen]


def held_out_blocks(corpus: Corpus, tokenizer: Tokenizer, length: int, count: int) -> RealText:
    """`count` rows of `length` tokens, or all if there are fewer, evenly spaced over the first MAX_TOKENS held out.

    The corpus decides what a row is: a block of text, a pair of prompt and response with padding, a puzzle.
    """
    rows = corpus.blocks(_InMemory(corpus, tokenizer), "valid", length, tokenizer, 0)
    limit = max(1, MAX_TOKENS // length)
    blocks = [rows[index].tolist() for _, index in zip(range(limit), one_row_each(rows), strict=False)]
    kept = min(count, len(blocks))
    return RealText(corpus.describe(), blocks, [index * len(blocks) // kept for index in range(kept)])


def one_row_each(rows: Any) -> range:
    """Indices of one row for each text: of its variants the last, where most is to be written."""
    variants = getattr(rows, "variants", 1)
    return range(variants - 1, len(rows), variants)


class _InMemory:
    """Stands for a token cache: `tokens` reads the beginning of a split, and `documents` then counts what was read."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer):
        self._corpus, self._tokenizer = corpus, tokenizer
        self._documents = 0

    def tokens(self, split: Split) -> "_Stream":
        ids: list[int] = []
        self._documents = 0
        for run in encode_documents(self._counted(split), self._tokenizer):
            ids += run
            if len(ids) >= MAX_TOKENS:
                self._documents = ids.count(self._tokenizer.eos_id)
                break
        return _Stream(ids)

    def documents(self, split: Split) -> int:
        return self._documents

    def _counted(self, split: Split) -> Iterator[str]:
        for document in self._corpus.documents(split):
            self._documents += 1
            yield document


class _Stream:
    """Stands for the `TokenStream` of a cache."""

    def __init__(self, ids: list[int]):
        self._ids = np.array(ids, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._ids[start:stop].copy()


@dataclass(frozen=True)
class HeldOut:
    """Where the held-out text of an evaluation comes from, and how it is read.

    Attributes:
        which: eval.real_data: "recorded", the data that the model's file names; "current", the group `data`; None: none.
        node: the group `data`.
        trusted_modules: modules outside this package whose corpora a file may name.
        eval_batch_size, num_workers, max_eval_examples, seed: as of `TextDataModule`.
    """

    which: str | None
    node: Mapping[str, Any]
    trusted_modules: Sequence[str]
    eval_batch_size: int
    num_workers: int
    max_eval_examples: int | None
    seed: int

    @classmethod
    def of(cls, wanted: EvalOptions, data: Mapping[str, Any], loader: Mapping[str, Any], seed: int) -> "HeldOut":
        """From the groups `eval`, `data` and `loader`."""
        batch, workers = loader["eval_batch_size"], loader["num_workers"]
        return cls(wanted.real_data, data, wanted.trusted_modules, batch, workers, wanted.max_examples, seed)

    def check_needed(self, mode: str) -> None:
        """Raises ValueError unless eval.real_data names a text."""
        if self.which is None:
            raise ValueError(f"eval.real_data must be recorded or current for mode={mode}, not {self.which}")

    def corpus(self, lm: LanguageModel) -> Corpus:
        return corpus_of(self.node, "data") if self.which == "current" else self._recorded(lm)

    def _recorded(self, lm: LanguageModel) -> Corpus:
        return recorded_corpus(lm.config.get("data"), self.trusted_modules)

    def real_text(self, lm: LanguageModel, length: int, count: int) -> RealText | str:
        """`count` blocks to compare samples with, or the reason why there are none.

        A recorded corpus that is gone is no error. Faults in the group `data` of this command are.
        """
        if self.which is None:
            return "eval.real_data=null"
        if self.which == "current":
            return held_out_blocks(corpus_of(self.node, "data"), lm.tokenizer, length, count)
        try:
            return held_out_blocks(self._recorded(lm), lm.tokenizer, length, count)
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            return f"{reason}; name the text anew with eval.real_data=current and data=..., or do without: eval.real_data=null"

    def data(self, lm: LanguageModel) -> TextDataModule:
        """The text, tokenised and cut as in training; ValueError, with what to do, if a recorded corpus cannot be read."""
        if self.which == "current":
            return self.data_of(corpus_of(self.node, "data"), lm)
        try:
            corpus = self._recorded(lm)
            corpus.cache_dir = self.node.get("cache_dir")  # a file that is not trusted must not choose where to write
            data = self.data_of(corpus, lm)
            data.prepare()
        except ValueError as error:  # an OSError concerns the disk of the token cache
            reason = " ".join(str(error).split())
            raise ValueError(f"{reason}; name the text anew with eval.real_data=current and data=...") from error
        return data

    def data_of(self, corpus: Corpus, lm: LanguageModel) -> TextDataModule:
        return TextDataModule(
            corpus,
            _Given(lm.tokenizer),
            length=lm.length,
            seed=self.seed,
            eval_batch_size=self.eval_batch_size,
            num_workers=self.num_workers,
            max_eval_examples=self.max_eval_examples,
        )

    def say_what_is_missing(self, real: RealText | str, count: int, console: Console) -> None:
        """Prints a warning if real text is wanted but missing, or has fewer blocks than there are samples."""
        if isinstance(real, str) and self.which is not None:
            console.print(f"warning: no real text to compare with: {escape(real)}", soft_wrap=True)
        elif isinstance(real, RealText) and len(real.chosen) < count:
            console.print(
                f"warning: only {len(real.chosen)} real texts for {count} samples: distinct-n and self-BLEU depend on the "
                "number and do not compare",
                soft_wrap=True,
            )


def corpus_of(node: Any, key: str) -> Corpus:
    """The corpus of a config node, or of a bare path, whose text is then all held out."""
    corpus = TextCorpus(node, valid_path=node) if isinstance(node, str) else instantiate(node, key)
    if not isinstance(corpus, Corpus):
        raise ValueError(f"{key}: {node} is no corpus: give a path, or a node with the _target_ of one")
    return corpus


class _Given(TokenizerBuilder):
    """Builds nothing: it returns the model's tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def build(self, documents, cache_dir=None, source=None) -> Tokenizer:
        return self.tokenizer
