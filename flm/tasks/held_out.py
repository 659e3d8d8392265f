"""Held-out text that an evaluation reads: that of the data a model records, or of this command's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape

from flm.checkpoints.recorded_corpus import recorded_corpus
from flm.data.corpora.corpus import Corpus
from flm.data.corpora.text import TextCorpus
from flm.data.module import TextDataModule
from flm.data.real_text import RealText, held_out_blocks
from flm.data.tokenizers import Tokenizer, TokenizerBuilder
from flm.language_model import LanguageModel
from flm.tasks.eval_options import EvalOptions
from flm.tasks.instantiate import instantiate


@dataclass(frozen=True)
class HeldOut:
    """
    Attributes:
        which: eval.real_data: "recorded", the data that the model's file names; "current", the group `data`; None, none.
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
        """As the groups `eval`, `data` and `loader` say."""
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
        """`count` blocks to hold samples against, or why there are none.

        The text of a recorded corpus may be elsewhere by now, which stops nothing. In the group `data` of this command the
        user's mistakes are errors.
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
        """The text, tokenised and cut as the model was trained; of a recorded corpus that cannot be read, says what to do."""
        if self.which == "current":
            return self.data_of(corpus_of(self.node, "data"), lm)
        try:
            corpus = self._recorded(lm)
            corpus.cache_dir = self.node.get("cache_dir")  # a file that may come from anyone does not say where to write
            data = self.data_of(corpus, lm)
            data.prepare()
        except ValueError as error:  # an OSError is of the disk that the tokens are kept on
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
        """One line where real text is missing, or less than samples, although it is wanted."""
        if isinstance(real, str) and self.which is not None:
            console.print(f"warning: no real text to compare with: {escape(real)}", soft_wrap=True)
        elif isinstance(real, RealText) and len(real.chosen) < count:
            console.print(
                f"warning: only {len(real.chosen)} real texts for {count} samples: distinct-n and self-BLEU depend on the "
                "number and do not compare",
                soft_wrap=True,
            )


def corpus_of(node: Any, key: str) -> Corpus:
    """The corpus of a config node; of a bare path, all of whose text is held-out text."""
    corpus = TextCorpus(node, valid_path=node) if isinstance(node, str) else instantiate(node, key)
    if not isinstance(corpus, Corpus):
        raise ValueError(f"{key}: {node} is no corpus: give a path, or a node with the _target_ of one")
    return corpus


class _Given(TokenizerBuilder):
    """The model's tokenizer, whatever the text."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def build(self, documents, cache_dir=None, source=None) -> Tokenizer:
        return self.tokenizer
