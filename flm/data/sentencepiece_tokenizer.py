"""A SentencePiece tokenizer: from a model file, or learned on the training documents."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from flm.data.sentencepiece_model import MAX_BYTES, SentencePieceModel
from flm.data.tokenizers import Documents, LearnedTokenizer, Tokenizer
from flm.ranges import Existing

_LONGEST_LINE = 1 << 16  # bytes; the library drops what is longer


class SentencePieceTokenizer(LearnedTokenizer):
    """BPE with byte fallback, split digits, NFKC and no space before a text: the tokenizer of the parameter-golf track.

    Every document begins with BOS and ends with nothing.

    Args:
        path: a model file, whose own settings count; None: learned on the training documents (needs `sentencepiece`).
        vocab_size: V to learn, at least 320; a small corpus may be too small for it. Not read with a path.

    Raises:
        ValueError: on `build`, where the file is no BPE model, or the documents do not give so many pieces.
    """

    def __init__(self, path: Existing | None = None, vocab_size: Annotated[int, Ge(320)] = 1024):
        self.path, self.vocab_size = None if path is None else os.fspath(path), vocab_size

    def build(self, documents: Documents, cache_dir: Path | None = None, source: dict[str, Any] | None = None) -> Tokenizer:
        if self.path is None:
            return super().build(documents, cache_dir, source)
        try:
            with open(self.path, "rb") as file:
                raw = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise ValueError(f"tokenizer.path={self.path} cannot be read ({error.strerror})") from error
        if len(raw) > MAX_BYTES:
            raise ValueError(f"tokenizer.path={self.path}: larger than {MAX_BYTES:,} bytes, so no SentencePiece model")
        try:
            return SentencePieceModel.parse(raw).tokenizer(Path(self.path).name)
        except Exception as error:  # besides ours, the library's, which raises nothing narrower for rules that are none
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"tokenizer.path={self.path}: {reason}") from error

    def learn(self, documents: Iterator[str]) -> Tokenizer:
        return SentencePieceModel.parse(self.train(documents)).tokenizer("sentencepiece")

    def train(self, documents: Iterator[str]) -> bytes:
        """A model file learned on the documents."""
        import sentencepiece

        lines = (line for document in documents for line in document.splitlines() if line.strip())
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines,
                model_writer=written,
                model_type="bpe",
                vocab_size=self.vocab_size,
                character_coverage=0.999,
                byte_fallback=True,
                split_digits=True,
                normalization_rule_name="nmt_nfkc",
                add_dummy_prefix=False,
                pad_id=0,
                bos_id=1,
                eos_id=2,
                unk_id=3,
                max_sentence_length=_LONGEST_LINE,
                num_threads=1,  # the result is the same, and the machine may be shared
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"tokenizer.vocab_size={self.vocab_size} does not suit this text: {reason}") from error
        return written.getvalue()
