"""SentencePiece tokenizers (arXiv 1808.06226): from a model file, or learned on the training documents.

The file is one protocol-buffer message, read here because the library tells nobody how it normalises text, which a tokenizer of
`tokenizers` has to know. Only what decides ids and text is taken from it; nothing in it is run.
"""

import io
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tokenizers
from annotated_types import Ge
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from flm.data.byte_table import WORD_START
from flm.data.tokenizers import Documents, LearnedTokenizer, Tokenizer
from flm.ranges import Existing

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # SentencePiece.Type
_UNIGRAM, _BPE, _CHARACTERS = 1, 2, 4  # TrainerSpec.ModelType
MAX_BYTES = 1 << 24  # of a file; the largest in use are a third of it
_MAX_PIECE = 512  # characters; the library's own limit on what it learns


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary: its spelling, its score (higher is merged first) and its type."""

    text: str
    score: float = 0.0
    type: int = _NORMAL


@dataclass
class SentencePieceModel:
    """What a model file says, with the format's defaults.

    Attributes:
        type: of the model, as TrainerSpec.ModelType numbers them.
        charsmap: the normaliser's compiled rules; empty for none.
        dummy_prefix: put a space before every text.
        strip_spaces: drop spaces at both ends and make runs of them one.
    """

    pieces: list[Piece] = field(default_factory=list)
    type: int = _UNIGRAM
    byte_fallback: bool = False
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    charsmap: bytes = b""
    dummy_prefix: bool = True
    strip_spaces: bool = True

    @classmethod
    def parse(cls, raw: bytes) -> "SentencePieceModel":
        """Raises ValueError where these bytes are no model, or one whose ids would not be the library's."""
        model, marks_ends = cls(), False
        try:
            for number, value in _fields(raw):
                if number == 1:
                    model.pieces.append(_piece(value))
                elif number == 2:  # TrainerSpec
                    spec = dict(_fields(value))
                    model.type = spec.get(3, _UNIGRAM)
                    marks_ends = bool(spec.get(24, 0))
                    model.byte_fallback = bool(spec.get(35, 0))
                    model.bos_id, model.eos_id = _signed(spec.get(41, 1)), _signed(spec.get(42, 2))
                    model.pad_id = _signed(spec.get(43, -1))
                elif number == 3:  # NormalizerSpec
                    spec = dict(_fields(value))
                    model.charsmap = bytes(spec.get(2, b""))
                    model.dummy_prefix, model.strip_spaces = bool(spec.get(3, 1)), bool(spec.get(4, 1))
                    if not spec.get(5, 1):
                        raise ValueError("leaves spaces unescaped")
        except (IndexError, struct.error, UnicodeDecodeError, TypeError, AttributeError) as error:
            raise ValueError("no SentencePiece model") from error
        if not model.pieces:
            raise ValueError("no SentencePiece model")
        if model.type not in (_UNIGRAM, _BPE, _CHARACTERS):
            raise ValueError("a SentencePiece model of another type than unigram, BPE or characters")
        if marks_ends and model.dummy_prefix:
            raise ValueError("a SentencePiece model that puts a space behind every text (treat_whitespace_as_suffix)")
        if any(piece.type == _USER_DEFINED for piece in model.pieces):
            raise ValueError("a SentencePiece model with user-defined symbols, which are looked for before all other pieces")
        if (longest := max(len(piece.text) for piece in model.pieces)) > _MAX_PIECE:
            raise ValueError(f"a SentencePiece model with a piece of {longest} characters, more than {_MAX_PIECE}")
        return model

    def tokenizer(self, name: str) -> Tokenizer:
        """The same tokenizer; each document begins with BOS, and control symbols written out in a text are text.

        Raises:
            ValueError: it has no id for the begin or the end of a text.
        """
        if self.bos_id < 0 or self.eos_id < 0:
            raise ValueError("no id for begin (bos_id) or end (eos_id) of a text")
        backend = tokenizers.Tokenizer(self._unigram() if self.type == _UNIGRAM else self._bpe())
        backend.normalizer = self._normalizer()
        if self.type == _BPE and not any(WORD_START in piece.text[1:] for piece in self.pieces):
            # no piece reaches into a next word, so words may be looked up one by one
            backend.pre_tokenizer = pre_tokenizers.Split(WORD_START, "merged_with_next")
        if self.type == _UNIGRAM:  # which would find these in a text by their spelling
            silent = "|".join(re.escape(piece.text[1:]) for piece in self.pieces if piece.type != _NORMAL and piece.text[1:])
            backend.pre_tokenizer = pre_tokenizers.Split(Regex(f"<(?={silent})"), "isolated")
        undo = [decoders.Replace(WORD_START, " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence(undo + ([decoders.Strip(" ", 1, 0)] if self.dummy_prefix else []))
        silent = [piece.text for piece in self.pieces if piece.type in (_CONTROL, _UNUSED)]
        backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in silent])
        pad_id = self.pad_id if self.pad_id >= 0 else None
        ids = (self.bos_id, self.eos_id, pad_id)
        return Tokenizer(backend, name, "sentencepiece", *ids, begins_documents=True, reads_special=False)

    def _bpe(self) -> models.BPE:
        return models.BPE(
            vocab={piece.text: i for i, piece in enumerate(self.pieces)},
            merges=self._merges() if self.type == _BPE else [],
            unk_token=next((piece.text for piece in self.pieces if piece.type == _UNKNOWN), None),
            fuse_unk=True,
            byte_fallback=self.byte_fallback,
        )

    def _unigram(self) -> models.Unigram:
        unknown = next((i for i, piece in enumerate(self.pieces) if piece.type == _UNKNOWN), None)
        return models.Unigram([(piece.text, piece.score) for piece in self.pieces], unknown, self.byte_fallback)

    def _merges(self) -> list[tuple[str, str]]:
        """Every pair of pieces that makes a piece, best first."""
        normal = [piece for piece in self.pieces if piece.type == _NORMAL]
        known = {piece.text for piece in normal}
        merges = []
        for piece in sorted(normal, key=lambda piece: -piece.score):
            splits = ((piece.text[:i], piece.text[i:]) for i in range(1, len(piece.text)))
            merges += [pair for pair in splits if pair[0] in known and pair[1] in known]
        return merges

    def _normalizer(self) -> normalizers.Normalizer:
        steps: list[normalizers.Normalizer] = []
        if self.charsmap:
            steps.append(normalizers.Precompiled(self.charsmap))
        if self.strip_spaces:
            steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        steps.append(normalizers.Replace(" ", WORD_START))
        if self.strip_spaces and not self.charsmap:  # which turns the sign itself, written out in a text, into a space before
            steps.append(normalizers.Replace(Regex(f"{WORD_START}+\\z"), ""))
        if self.dummy_prefix:
            steps.append(normalizers.Prepend(WORD_START))
        return normalizers.Sequence(steps)


def _piece(raw: bytes) -> Piece:
    values = dict(_fields(raw))
    return Piece(values[1].decode(), struct.unpack("<f", values.get(2, b"\0\0\0\0"))[0], values.get(3, _NORMAL))


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field number and value of a protocol-buffer message: an integer, or the bytes of anything else."""
    place = 0
    while place < len(raw):
        key, place = _varint(raw, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(raw, place)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(raw, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise IndexError(f"wire type {wire}")
        if place + size > len(raw):
            raise IndexError("message cut short")
        yield number, raw[place : place + size]
        place += size


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise IndexError("no number")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


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
