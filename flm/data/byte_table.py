"""How many bytes of text each token stands for. V vocabulary."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flm.data.tokenizers import Tokenizer

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE_BYTE = "\u0120"  # how byte-level pieces spell a space
WORD_START = "\u2581"  # how SentencePiece spells one
_SAMPLES = ("a b", "The cat sat,  twice.\n", " 12 x ", "caf\u00e9 \u2603\tna\u00efve \U0001f600")


@dataclass(frozen=True)
class ByteTable:
    """UTF-8 bytes that each token stands for, given the token before it.

    Over the ids of a text they add up to the UTF-8 length of the text as the tokenizer normalises it. Every space counts one
    byte, except at the start of a text if the tokenizer adds or strips one there. Unknown tokens stand for no byte, so that
    the text they lose does not make a model look better.

    Attributes:
        base_bytes: (V,) int64, bytes without a `leading_space`; 0 for special and unknown tokens, 1 for byte pieces.
        leading_space: (V,) bool, the piece begins with a space that counts except after a boundary; all false if the
            tokenizer neither adds nor strips a space.
        boundary: (V,) bool, special tokens.
    """

    base_bytes: Tensor
    leading_space: Tensor
    boundary: Tensor

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "ByteTable":
        """The table of a tokenizer whose pieces are those of SentencePiece, bytes, or single characters.

        Raises:
            ValueError: its tokens do not show which text they stand for (WordPiece drops the spaces).
        """
        description = json.loads(tokenizer.to_dict()["json"])
        model, steps = description["model"], list(_decoders(description["decoder"]))
        kinds = {step["type"] for step in steps}
        mark = next((sign for step in steps if (sign := _space_sign(step)) is not None), None)
        byte_level = kinds == {"ByteLevel"}
        if model["type"] not in ("BPE", "Unigram") or not (byte_level or _is_of_pieces(steps)):
            raise ValueError(
                f"tokenizer {tokenizer.name}: bytes are counted for pieces that spell all of a text, not for "
                f"{model['type']} decoded by {', '.join(sorted(kinds)) or 'nothing'}"
            )
        mark = _SPACE_BYTE if byte_level else " " if mark is None else mark
        by_bytes = bool(model.get("byte_fallback")) and "ByteFallback" in kinds
        pieces = [tokenizer.token(token_id) for token_id in range(tokenizer.vocab_size)]
        if by_bytes and mark == WORD_START and mark not in pieces:
            raise ValueError(f"tokenizer {tokenizer.name}: without a piece for a lone space, it would count three bytes")
        added = {token["id"]: token for token in description["added_tokens"]}
        unknown, drops = _unknown(model, tokenizer), _drops_first_space(description, steps, tokenizer)
        base, leading, special = [], [], []
        for token_id, piece in enumerate(pieces):
            is_added = token_id in added
            silent = token_id == unknown or (is_added and added[token_id]["special"])
            spaced = drops and not silent and not is_added and piece.startswith(mark)
            special.append(silent and token_id != unknown)
            leading.append(spaced)
            if silent:
                base.append(0)
            elif by_bytes and _BYTE_PIECE.fullmatch(piece):
                base.append(1)
            elif byte_level and not is_added:  # byte-level pieces spell each byte by one character
                base.append(len(piece) - spaced)
            else:
                base.append(len(piece.replace(mark, " ").encode()) - spaced)
        table = cls(torch.tensor(base), torch.tensor(leading), torch.tensor(special))
        table._check(tokenizer, unknown, drops)
        return table

    def to(self, device: torch.device | str) -> "ByteTable":
        return ByteTable(self.base_bytes.to(device), self.leading_space.to(device), self.boundary.to(device))

    def bytes(self, targets: Tensor, previous: Tensor) -> Tensor:
        """Bytes (int64) of each id of `targets`, given the id before it at the same place of `previous`; same shape."""
        space = self.leading_space[targets] & ~self.boundary[previous]
        return self.base_bytes[targets] + space

    def of_text(self, ids: Tensor, before: int) -> int:
        """Bytes of consecutive tokens ids (n,), which follow the token `before`."""
        return int(self.bytes(ids, torch.cat((ids.new_tensor([before]), ids))[:-1]).sum())

    def _check(self, tokenizer: Tokenizer, unknown: int | None, drops: bool) -> None:
        """Raises ValueError if sample texts decode to another length than the table counts."""
        for text in _SAMPLES:
            ids = tokenizer.encode(text)
            written = tokenizer.decode(ids).encode()
            counted = self.of_text(torch.tensor(ids, dtype=torch.long), tokenizer.bos_id)
            free = int(drops and written.startswith(b" "))
            if unknown not in ids and counted not in (len(written), len(written) - free):
                raise ValueError(
                    f"tokenizer {tokenizer.name}: its tokens do not add up to the text: {counted} bytes for {written!r}"
                )


def _decoders(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if decoder is not None:
        yield from decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]


def _space_sign(step: dict[str, Any]) -> str | None:
    """The string that a decoding step turns into a space; None: it makes none."""
    if step["type"] == "Metaspace":
        return step["replacement"]
    return step["pattern"].get("String") if step["type"] == "Replace" and step["content"] == " " else None


def _is_of_pieces(steps: list[dict[str, Any]]) -> bool:
    """Whether decoding joins the pieces and only replaces signs that stand for spaces."""
    plain = {"ByteFallback", "Fuse", "Strip", "Metaspace"}
    return bool(steps) and all(step["type"] in plain or _space_sign(step) is not None for step in steps)


def _unknown(model: dict[str, Any], tokenizer: Tokenizer) -> int | None:
    if model["type"] == "Unigram":
        return model.get("unk_id")
    spelling = model.get("unk_token")
    return next((i for i in range(tokenizer.vocab_size) if tokenizer.token(i) == spelling), None)


def _drops_first_space(description: dict[str, Any], steps: list[dict[str, Any]], tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer adds a space at the start of a text, or strips one."""
    for step in steps:
        if step["type"] == "Strip" and step["content"] == " " and step["start"] > 0:
            return True
        if step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never":
            return True
    prefix = '"add_prefix_space": true' in json.dumps(description["pre_tokenizer"])
    return prefix or tokenizer.encode(" a") == tokenizer.encode("a")
