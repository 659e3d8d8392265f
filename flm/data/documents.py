"""Documents of text in two splits, for training and held out: what is tokenised, and how it is told from other text."""

import re
from collections.abc import Iterator
from typing import Any, Literal, Protocol

Split = Literal["train", "valid"]
PIECE_CHARACTERS = 2000  # of a piece of a document, at least
_BLANK_LINE = re.compile(r"\n\s*\n")
_SPACE = re.compile(r"\s+")
SPLITS: tuple[Split, ...] = ("train", "valid")


class Normaliser(Protocol):
    """Rewrites every document before anything else sees it. Pickled when several processes tokenise."""

    def __call__(self, text: str) -> str: ...

    def fingerprint(self) -> dict[str, Any]:
        """Plain values that determine what it does."""
        ...


class Documents(Protocol):
    """What a token cache is made of; every corpus is one.

    Attributes:
        normaliser: applied to each document; None: text as it is.
        processes: that tokenise; None: one per core this process may use.
        splits: those it has.
    """

    normaliser: Normaliser | None
    processes: int | None

    @property
    def splits(self) -> tuple[Split, ...]: ...

    def raw_documents(self, split: Split) -> Iterator[str]:
        """The documents of one split before the normaliser, always in the same order; empty ones do not count."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Plain values that determine the documents of all splits."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Plain values on where the documents came from that do not tell them apart."""
        ...

    def describe(self) -> str:
        """A few words for logs and reports."""
        ...


def pieces(text: str, characters: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cuts at the first blank line after `characters`, else at the first white space, else at four times that."""
    start = 0
    while len(text) - start > characters:
        earliest, latest = start + characters, start + 4 * characters
        cut = _BLANK_LINE.search(text, earliest, latest) or _SPACE.search(text, earliest, latest)
        stop, following = cut.span() if cut else (latest, latest)
        yield text[start:stop]
        start = following
    if text[start:].strip():
        yield text[start:]
