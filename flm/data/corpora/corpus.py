"""A corpus gives documents of text in two splits, for training and held out; how it finds the two, subclasses decide."""

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
    """Base of all corpora: subclasses give `raw_documents()`, `source_fingerprint()` and `describe()`.

    Args:
        normaliser: applied to each document; documents it leaves empty are dropped. None: text as it is.
        wrap: how the documents are cut into blocks, a key of `flm.data.blocks.FRAMES`.
        cache_dir: folder that holds the tokenised documents; None: a temporary one, gone when the process ends.
        processes: how many tokenise a corpus of more than one shard; None: one per core this process may use.

    Attributes:
        streamed: whether training batches come through `stream_loader` from where the text lies, without a token cache.
        conditional: whether parts of rows are given, so that the corpus is no text to score from beginning to end.
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
        """Those it has; a corpus to evaluate on may have no training text."""
        return SPLITS

    def raw_documents(self, split: Split) -> Iterator[str]:
        """The documents of one split before the normaliser, always in the same order; empty ones do not count."""
        raise NotImplementedError

    def source_fingerprint(self) -> dict[str, Any]:
        """Plain values that determine what `raw_documents` gives."""
        raise NotImplementedError

    def describe(self) -> str:
        """A few words for logs and reports."""
        raise NotImplementedError

    def provenance(self) -> dict[str, Any]:
        """Plain values on where the documents came from that do not tell them apart; for the cache's manifest."""
        return {}

    def documents(self, split: Split) -> Iterator[str]:
        """The documents of one split, normalised, in the corpus's order; none is empty."""
        for document in self.raw_documents(split):
            text = document if self.normaliser is None else self.normaliser(document)
            if text:
                yield text

    def open(self, tokenizer: Any, root: Path) -> Any:
        """Its tokens, as a `flm.data.cache.TokenCache`, built below `root` first if they are not there."""
        return open_cache(self, tokenizer, root)

    def blocks(self, cache: Any, split: Split, length: int, tokenizer: Any, seed: int) -> Any:
        """Training or validation rows of `length` tokens out of this corpus's token cache; see `flm.data.blocks.TokenBlocks`.

        Args:
            seed: of what chance decides about rows, beside their order.
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
            state: of an earlier loader, `joined`, which this one continues at `share.start`; None: from the beginning.
            options: of `torch.utils.data.DataLoader`.

        Raises:
            ValueError: the state is of other data or settings; or the corpus cannot be shared out so.
        """
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        """Plain values that determine the documents of all splits."""
        return {
            "corpus": type(self).__name__,
            "source": self.source_fingerprint(),
            "normaliser": None if self.normaliser is None else self.normaliser.fingerprint(),
        }
