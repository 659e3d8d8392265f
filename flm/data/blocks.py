"""A stream of tokens cut into blocks of one length, as a Dataset. L block length, V vocabulary."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.utils.data import Dataset

from flm.data.cache import TokenStream
from flm.data.layouts import Row
from flm.data.tokenizers import Tokenizer
from flm.ranges import one_of


@dataclass(frozen=True)
class Frame:
    """Ids that every block begins and ends with; the stream fills what lies between."""

    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.begin) + len(self.end)


# "bos_eos" is the packing of the published LM1B ("wrapped") and OpenWebText results (arXiv 2406.07524, 2602.16813). Likelihoods
# with one frame do not compare with those of the other.
FRAMES: dict[str, Callable[[Tokenizer], Frame]] = {
    "plain": lambda tokenizer: Frame(),
    "bos_eos": lambda tokenizer: Frame((tokenizer.bos_id,), (tokenizer.eos_id,)),
}


FrameName = Annotated[str, one_of(FRAMES)]


def frame_of(wrap: str, tokenizer: Tokenizer) -> Frame:
    """The frame that `data.wrap` names."""
    return FRAMES[wrap](tokenizer)


class TokenBlocks(Dataset[Tensor]):
    """Consecutive blocks (L,) int64 of a stream. A remainder shorter than a block is dropped.

    Args:
        stream: documents one after the other, an EOS after each.
        length: L, the frame included.
        frame: what surrounds the stream's tokens in each block.

    Raises:
        ValueError: the stream does not fill one block, or the frame leaves no room.
    """

    def __init__(self, stream: TokenStream, length: int, frame: Frame | None = None):
        self.stream, self.length, self.frame = stream, length, Frame() if frame is None else frame
        self.payload = length - len(self.frame)
        if self.payload < 1:
            raise ValueError(f"model.length={length} leaves no room within the {len(self.frame)} tokens of data.wrap")
        if len(stream) < self.payload:
            raise ValueError(
                f"data: {len(stream)} tokens do not fill one block of model.length={length}: shorten it, or give more "
                "text (for the validation split: a larger data.valid_fraction)"
            )
        self._begin = torch.tensor(self.frame.begin, dtype=torch.long)
        self._end = torch.tensor(self.frame.end, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.stream) // self.payload

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} is not in [0, {len(self)})")
        inner = torch.from_numpy(self.stream.read(index * self.payload, (index + 1) * self.payload))
        return torch.cat((self._begin, inner, self._end)) if len(self.frame) else inner

    def row(self, index: int) -> Row:
        """A block with weight 1 everywhere."""
        tokens = self[index]
        return Row(tokens, torch.ones(tokens.shape))

    def token_counts(self, vocab_size: int) -> Tensor:
        """How often each id occurs in all blocks, frames included; int64 (V,)."""
        counts = torch.from_numpy(self.stream.counts(vocab_size, len(self) * self.payload))
        for token in (*self.frame.begin, *self.frame.end):
            counts[token] += len(self)
        return counts


class Rows(Dataset[Row]):
    """Blocks as rows with weights, which loaders take: any object with `row(index)` and a length will do."""

    def __init__(self, blocks: TokenBlocks):
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Row:
        return self.blocks.row(index)
