"""What surrounds the tokens of a block."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from flm.data.tokenizers import Tokenizer
from flm.ranges import one_of


@dataclass(frozen=True)
class Frame:
    """Ids that every block begins and ends with; the stream fills what lies between."""

    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.begin) + len(self.end)


# "bos_eos" is the packing of the published LM1B ("wrapped") and OpenWebText results (arXiv 2406.07524, 2602.16813).
# Numbers of the two are not comparable with each other.
FRAMES: dict[str, Callable[[Tokenizer], Frame]] = {
    "plain": lambda tokenizer: Frame(),
    "bos_eos": lambda tokenizer: Frame((tokenizer.bos_id,), (tokenizer.eos_id,)),
}


FrameName = Annotated[str, one_of(FRAMES)]


def frame_of(wrap: str, tokenizer: Tokenizer) -> Frame:
    """The frame a config names by `data.wrap`."""
    return FRAMES[wrap](tokenizer)
