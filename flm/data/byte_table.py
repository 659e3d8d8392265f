"""How many bytes of text each token stands for. V vocabulary."""

import json
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from flm.data.sentencepiece_model import WORD_START
from flm.data.tokenizers import Tokenizer

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class ByteTable:
    """UTF-8 bytes that each token stands for, given the token before it.

    A space that a piece begins with counts one byte, unless the token before it ends nothing (begin of text, unknown): a
    tokenizer that strips leading spaces never had one there.

    Attributes:
        base_bytes: (V,) int64, without one leading space; 0 for special tokens, 1 for byte pieces.
        leading_space: (V,) bool, the piece begins with a space.
        boundary: (V,) bool, special and unknown tokens, which no text precedes.
    """

    base_bytes: Tensor
    leading_space: Tensor
    boundary: Tensor

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "ByteTable":
        """Of a tokenizer with SentencePiece's pieces, with byte-level pieces, or with single characters.

        The bytes are those of the text as the tokenizer normalises it.

        Raises:
            ValueError: its tokens do not say what text they stand for (WordPiece drops the spaces).
        """
        description = json.loads(tokenizer.to_dict()["json"])
        model, decoder = description["model"], description["decoder"] or {}
        if model["type"] != "BPE":
            raise ValueError(f"tokenizer {tokenizer.name}: bytes are counted for BPE pieces only, not {model['type']}")
        byte_level = decoder.get("type") == "ByteLevel"
        escaped = WORD_START in json.dumps(decoder, ensure_ascii=False)
        special = {token["id"] for token in description["added_tokens"] if token["special"]}
        pieces = [tokenizer.token(token_id) for token_id in range(tokenizer.vocab_size)]
        if escaped and model.get("byte_fallback") and WORD_START not in pieces:
            raise ValueError(f"tokenizer {tokenizer.name}: without a piece for a lone space, it would count three bytes")
        base, leading, boundary = [], [], []
        for token_id, piece in enumerate(pieces):
            ends_nothing = token_id in special or piece == model.get("unk_token")
            spaced = escaped and not ends_nothing and piece.startswith(WORD_START)
            boundary.append(ends_nothing)
            leading.append(spaced)
            if ends_nothing:
                base.append(0)
            elif byte_level:  # which spells each byte by one character
                base.append(len(piece))
            elif model.get("byte_fallback") and _BYTE_PIECE.fullmatch(piece):
                base.append(1)
            else:
                base.append(len((piece.removeprefix(WORD_START) if spaced else piece).encode()))
        return cls(torch.tensor(base), torch.tensor(leading), torch.tensor(boundary))

    def to(self, device: torch.device | str) -> "ByteTable":
        return ByteTable(self.base_bytes.to(device), self.leading_space.to(device), self.boundary.to(device))

    def bytes(self, targets: Tensor, previous: Tensor) -> Tensor:
        """Bytes (int64) of each target id, each after the id at the same place of `previous`; same shape."""
        space = self.leading_space[targets] & ~self.boundary[previous]
        return self.base_bytes[targets] + space
