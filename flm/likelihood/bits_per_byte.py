"""A likelihood in the units that people compare: nats per token, bits per token, perplexity, bits per byte.

Bits per byte of UTF-8 text compare across tokenizers, perplexities do not. `num_tokens` is the number of tokens that the nats
per token are a mean of, `num_bytes` the UTF-8 length of the text they spell, exact or estimated.

`ByteTally` adds up nats, tokens and bytes of scored targets, and divides once.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from flm.algos.algorithm import Batch
from flm.data.byte_table import ByteTable
from flm.data.tokenizers import Tokenizer

_CONTEXT = 8  # tokens before a run that its spelling may depend on


def perplexity(nats_per_token: float) -> float:
    """exp(nats_per_token); inf if that overflows."""
    try:
        return math.exp(nats_per_token)
    except OverflowError:
        return math.inf


def bits_per_token(nats_per_token: float) -> float:
    """With a character tokenizer these are bits per character."""
    return nats_per_token / math.log(2)


def bits_per_byte(nats_per_token: float, num_tokens: int, num_bytes: float) -> float:
    """Total bits divided by total bytes. Raises ValueError if there is no byte."""
    if num_bytes <= 0:
        raise ValueError("bits per byte of an empty text are not defined")
    return bits_per_token(nats_per_token) * num_tokens / num_bytes


def nats_per_token(bits_per_byte: float, num_tokens: int, num_bytes: float) -> float:
    """The inverse of `bits_per_byte`. Raises ValueError if there is no token."""
    if num_tokens <= 0:
        raise ValueError("nats per token of an empty text are not defined")
    return bits_per_byte * math.log(2) * num_bytes / num_tokens


def utf8_bytes(texts: Iterable[str]) -> int:
    """Bytes of the texts in UTF-8."""
    return sum(len(text.encode("utf-8", errors="surrogatepass")) for text in texts)


def scored_texts(batch: Batch, tokenizer: Tokenizer) -> Iterator[str]:
    """The text of each run of consecutive scored tokens in the rows of a batch, without special tokens.

    A run that begins or ends inside a character has a replacement character there.
    """
    for before, run in _runs(batch):
        yield tokenizer.text_after(before[-_CONTEXT:], run, skip_special=True)


def scored_bytes(batches: Iterable[Batch], tokenizer: Tokenizer) -> int:
    """UTF-8 bytes that scored tokens stand for, by a `ByteTable` if the tokenizer has one, else by decoding each run."""
    try:
        table = ByteTable.of(tokenizer)
    except ValueError:
        return sum(utf8_bytes(scored_texts(batch, tokenizer)) for batch in batches)
    runs = (run for batch in batches for run in _runs(batch))
    return sum(table.of_text(torch.tensor(run), before[-1] if before else tokenizer.bos_id) for before, run in runs)


def _runs(batch: Batch) -> Iterator[tuple[list[int], list[int]]]:
    """For each run of consecutive scored tokens, the tokens before it in its row, and the run."""
    for row, counted in zip(batch.tokens.tolist(), batch.counted.tolist(), strict=True):
        start = 0
        for counts, run in groupby(counted):
            end = start + len(list(run))
            if counts:
                yield row[:start], row[start:end]
            start = end


@dataclass
class ByteTally:
    """Sums over scored targets. Several processes add up their `sums` before anything is divided.

    Attributes:
        sums: (3,) float64 on the CPU: nats, tokens, bytes.
    """

    table: ByteTable
    sums: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))

    def add(self, nats: Tensor, targets: Tensor, previous: Tensor, counted: Tensor | None = None) -> None:
        """Adds targets, by tensors of one shape: nats of each, its id, the id before it, and whether it counts (None: all).

        A begin-of-text target adds its nats and no byte.
        """
        on = torch.ones_like(targets, dtype=torch.bool) if counted is None else counted.bool()
        table = self.table.to(targets.device)
        num_bytes = table.bytes(targets, previous)[on].sum()
        found = (nats.detach()[on].double().sum(), on.sum(), num_bytes)
        self.sums += torch.stack([value.double().cpu() for value in found])

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> "ByteTally":
        """The tally of all processes, where `reduce` adds up a tensor over them."""
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
        """Of all targets together; raises ValueError if they have no byte."""
        return bits_per_byte(self.nats_per_token, self.num_tokens, self.num_bytes)

    def metrics(self, prefix: str = "val/") -> dict[str, float]:
        """Nats per token and bits per byte by metric name."""
        return {f"{prefix}nll_nats_per_token": self.nats_per_token, f"{prefix}bits_per_byte": self.bits_per_byte}
