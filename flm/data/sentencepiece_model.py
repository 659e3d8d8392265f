"""SentencePiece BPE models (arXiv 1808.06226): their file read without the library, and the same tokenizer made of it.

The file is one protocol-buffer message. Only what decides ids and text is taken from it; nothing in it is run.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from flm.data.tokenizers import Tokenizer

WORD_START = "\u2581"  # stands for a space
_NORMAL, _UNKNOWN, _CONTROL, _UNUSED, _BYTE = 1, 2, 3, 5, 6  # SentencePiece.Type
_BPE = 2  # TrainerSpec.ModelType


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
        charsmap: the normaliser's compiled rules; empty for none.
        dummy_prefix: put a space before every text.
        strip_spaces: drop spaces at both ends and make runs of them one.
    """

    pieces: list[Piece] = field(default_factory=list)
    byte_fallback: bool = False
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    charsmap: bytes = b""
    dummy_prefix: bool = True
    strip_spaces: bool = True

    @classmethod
    def parse(cls, raw: bytes) -> "SentencePieceModel":
        """Raises ValueError where these bytes are no BPE model."""
        model, model_type = cls(), 1
        try:
            for number, value in _fields(raw):
                if number == 1:
                    model.pieces.append(_piece(value))
                elif number == 2:  # TrainerSpec
                    spec = dict(_fields(value))
                    model_type = spec.get(3, 1)
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
        if model_type != _BPE:
            raise ValueError("a SentencePiece model of another type than BPE")
        return model

    def tokenizer(self, name: str) -> Tokenizer:
        """The same tokenizer; each document begins with BOS, and control symbols written out in a text are text.

        Raises:
            ValueError: it has no id for the begin or the end of a text.
        """
        if self.bos_id < 0 or self.eos_id < 0:
            raise ValueError("no id for begin (bos_id) or end (eos_id) of a text")
        unknown = next((piece.text for piece in self.pieces if piece.type == _UNKNOWN), None)
        backend = tokenizers.Tokenizer(
            models.BPE(
                vocab={piece.text: i for i, piece in enumerate(self.pieces)},
                merges=self._merges(),
                unk_token=unknown,
                fuse_unk=True,
                byte_fallback=self.byte_fallback,
            )
        )
        backend.normalizer = self._normalizer()
        if not any(WORD_START in piece.text[1:] for piece in self.pieces):
            # no piece reaches into a next word, so words may be looked up one by one
            backend.pre_tokenizer = pre_tokenizers.Split(WORD_START, "merged_with_next")
        undo = [decoders.Replace(WORD_START, " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence(undo + ([decoders.Strip(" ", 1, 0)] if self.dummy_prefix else []))
        silent = [piece.text for piece in self.pieces if piece.type in (_CONTROL, _UNUSED)]
        backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in silent])
        pad_id = self.pad_id if self.pad_id >= 0 else None
        ids = (self.bos_id, self.eos_id, pad_id)
        return Tokenizer(backend, name, "sentencepiece", *ids, begins_documents=True, reads_special=False)

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
