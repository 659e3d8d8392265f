"""What a corpus is: documents of text in two splits, one for training and one held out. Subclasses find and split the text."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flm.data.blocks import FrameName, TokenBlocks, frame_of
from flm.data.cache import open_cache
from flm.data.documents import SPLITS, Normaliser, Split
from flm.data.loaders import Share, StreamLoader
from flm.data.tokenizers import Tokenizer
from flm.ranges import Count, Folder


class Corpus:
    """Base of all corpora: subclasses define `raw_documents()`, `source_fingerprint()` and `describe()`.

    Args:
        normaliser: applied to each document; documents it leaves empty are dropped. None: text is not changed.
        wrap: the frame of each block, a key of `flm.data.blocks.FRAMES`.
        cache_dir: folder that holds the tokenised documents; None: a temporary one, removed when the process ends.
        processes: how many tokenise a corpus of more than one shard; None: one per core this process may use.

    Attributes:
        streamed: whether training batches are read from the source by `stream_loader`, without a token cache.
        conditional: whether parts of rows are given, as prompts are, so that only the rest is scored.
    """

    streamed = False
    conditional = False

    def __init__(
        self,
        normaliser: Normaliser | None = None,
        wrap: FrameName = "plain",
        cache_dir: Folder | None = None,
        processes: Count | None = None,
    ):
        self.normaliser, self.wrap, self.cache_dir, self.processes = normaliser, wrap, cache_dir, processes

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits it has; a corpus for evaluation may have no training text."""
        return SPLITS

    def raw_documents(self, split: Split) -> Iterator[str]:
        """The documents of one split before normalisation, always in the same order; empty ones are skipped later."""
        raise NotImplementedError

    def source_fingerprint(self) -> dict[str, Any]:
        """Plain values that change whenever `raw_documents` gives other text."""
        raise NotImplementedError

    def describe(self) -> str:
        """A few words for logs and reports."""
        raise NotImplementedError

    def provenance(self) -> dict[str, Any]:
        """Plain values on the origin of the documents, for the cache's manifest. They are not part of its identity."""
        return {}

    def documents(self, split: Split) -> Iterator[str]:
        """The normalised documents of one split, in order, without empty ones."""
        for document in self.raw_documents(split):
            text = document if self.normaliser is None else self.normaliser(document)
            if text:
                yield text

    def open(self, tokenizer: Any, root: Path) -> Any:
        """Its tokens as a `flm.data.cache.TokenCache`, built below `root` if it is not there."""
        return open_cache(self, tokenizer, root)

    def blocks(self, cache: Any, split: Split, length: int, tokenizer: Any, seed: int) -> Any:
        """Training or validation rows of `length` tokens from this corpus's token cache; see `flm.data.blocks.TokenBlocks`.

        Args:
            seed: of random choices within rows; their order has another.
        """
        return TokenBlocks(cache.tokens(split), length, frame_of(self.wrap, tokenizer))

    def stream_loader(
        self,
        tokenizer: Tokenizer,
        length: int,
        seed: int,
        share: Share,
        state: Mapping[str, Any] | None,
        options: dict[str, Any],
    ) -> StreamLoader:
        """Training batches of a streamed corpus for one process.

        Args:
            length: L, tokens per row.
            seed: of the order of documents.
            state: the `joined` state of an earlier loader, which this one continues at `share.start`; None: from the start.
            options: of `torch.utils.data.DataLoader`.

        Raises:
            ValueError: the state is of other data or settings, or the corpus cannot be split into these shares.
        """
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        """Plain values that determine the documents of all splits."""
        return {
            "corpus": type(self).__name__,
            "source": self.source_fingerprint(),
            "normaliser": None if self.normaliser is None else self.normaliser.fingerprint(),
        }
