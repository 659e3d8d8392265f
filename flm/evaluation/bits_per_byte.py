"""One likelihood in the units people compare: nats per token, bits per token, perplexity, bits per byte.

Bits per byte of UTF-8 text do not depend on the tokenizer, perplexities do. `num_tokens` is what the nats per token
were averaged over, `num_bytes` the UTF-8 length of the text those tokens spell, exact or estimated.

`ByteTable` counts the bytes of each token, `ByteTally` sums up nats, tokens and bytes of scored targets and divides once.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flm.data.tokenizers import Tokenizer

WORD_START = "\u2581"  # how SentencePiece spells a space
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


def perplexity(nats_per_token: float) -> float:
    """exp of the mean; inf where that overflows."""
    try:
        return math.exp(nats_per_token)
    except OverflowError:
        return math.inf


def bits_per_token(nats_per_token: float) -> float:
    """For a character tokenizer these are bits per character."""
    return nats_per_token / math.log(2)


def bits_per_byte(nats_per_token: float, num_tokens: int, num_bytes: float) -> float:
    """Total bits over total bytes. Raises ValueError where there is no byte."""
    if num_bytes <= 0:
        raise ValueError("bits per byte of an empty text are not defined")
    return bits_per_token(nats_per_token) * num_tokens / num_bytes


def nats_per_token(bits_per_byte: float, num_tokens: int, num_bytes: float) -> float:
    """The inverse of `bits_per_byte`. Raises ValueError where there is no token."""
    if num_tokens <= 0:
        raise ValueError("nats per token of an empty text are not defined")
    return bits_per_byte * math.log(2) * num_bytes / num_tokens


def utf8_bytes(texts: Iterable[str]) -> int:
    """Bytes of the texts in UTF-8."""
    return sum(len(text.encode("utf-8", errors="surrogatepass")) for text in texts)


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
        special = {token["id"] for token in description["added_tokens"] if token["special"]}
        pieces = [tokenizer.token(token_id) for token_id in range(tokenizer.vocab_size)]
        base, leading, boundary = [], [], []
        for token_id, piece in enumerate(pieces):
            ends_nothing = token_id in special or piece == model.get("unk_token")
            spaced = not (byte_level or ends_nothing) and piece.startswith(WORD_START)
            boundary.append(ends_nothing)
            leading.append(spaced)
            if ends_nothing:
                base.append(0)
            elif byte_level:  # which spells each byte by one character
                base.append(len(piece))
            elif model.get("byte_fallback") and _BYTE_PIECE.fullmatch(piece):
                base.append(1)
            else:
                base.append(utf8_bytes([piece.removeprefix(WORD_START) if spaced else piece]))
        return cls(torch.tensor(base), torch.tensor(leading), torch.tensor(boundary))

    def to(self, device: torch.device | str) -> "ByteTable":
        return ByteTable(self.base_bytes.to(device), self.leading_space.to(device), self.boundary.to(device))

    def bytes(self, targets: Tensor, previous: Tensor) -> Tensor:
        """Bytes (int64) of each target id, each after the id at the same place of `previous`; same shape."""
        space = self.leading_space[targets] & ~self.boundary[previous]
        return self.base_bytes[targets] + space


@dataclass
class ByteTally:
    """Sums of scored targets; several processes add up their `sums`, and divide once.

    Attributes:
        sums: (3,) float64 on the CPU: nats, tokens, bytes.
    """

    table: ByteTable
    sums: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))

    def add(self, nats: Tensor, targets: Tensor, previous: Tensor, counted: Tensor | None = None) -> None:
        """Tensors of one shape: nats of each target, its id, the id before it, and whether it counts (None: all do).

        A begin-of-text target adds no byte, and its nats count.
        """
        on = torch.ones_like(targets, dtype=torch.bool) if counted is None else counted.bool()
        table = self.table.to(targets.device)
        num_bytes = table.bytes(targets, previous)[on].sum()
        found = (nats.detach()[on].double().sum(), on.sum(), num_bytes)
        self.sums += torch.stack([value.double().cpu() for value in found])

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> "ByteTally":
        """With the sums of all processes."""
        return ByteTally(self.table, reduce(self.sums))

    @property
    def num_tokens(self) -> int:
        return int(self.sums[1])

    @property
    def num_bytes(self) -> int:
        return int(self.sums[2])

    @property
    def nats_per_token(self) -> float:
        return float(self.sums[0] / self.sums[1])

    @property
    def bits_per_byte(self) -> float:
        """Of all targets together; raises ValueError where there is no byte."""
        return bits_per_byte(self.nats_per_token, self.num_tokens, self.num_bytes)

    def metrics(self, prefix: str = "val/") -> dict[str, float]:
        """By metric name."""
        return {f"{prefix}nll_nats_per_token": self.nats_per_token, f"{prefix}bits_per_byte": self.bits_per_byte}
