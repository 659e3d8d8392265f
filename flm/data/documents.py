"""Documents of text in two splits, one for training and one held out, as the token cache reads them."""

import re
from collections.abc import Iterator
from typing import Any, Literal, Protocol

Split = Literal["train", "valid"]
PIECE_CHARACTERS = 2000  # least length of a piece of a document, but the last
_BLANK_LINE = re.compile(r"\n\s*\n")
_SPACE = re.compile(r"\s+")
SPLITS: tuple[Split, ...] = ("train", "valid")


class Normaliser(Protocol):
    """Rewrites every document before it is tokenised. It is pickled when several processes tokenise."""

    def __call__(self, text: str) -> str: ...

    def fingerprint(self) -> dict[str, Any]:
        """Plain values that change whenever its output does."""
        ...


class Documents(Protocol):
    """What a token cache is made of; every corpus is one.

    Attributes:
        normaliser: applied to each document; None: text is not changed.
        processes: how many tokenise; None: one per core this process may use.
        splits: the splits it has.
    """

    normaliser: Normaliser | None
    processes: int | None

    @property
    def splits(self) -> tuple[Split, ...]: ...

    def raw_documents(self, split: Split) -> Iterator[str]:
        """The documents of one split before normalisation, always in the same order; empty ones are skipped later."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Plain values that determine the documents of all splits."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Plain values on the origin of the documents. They are not part of the cache's identity."""
        ...

    def describe(self) -> str:
        """A few words for logs and reports."""
        ...


def pieces(text: str, characters: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Pieces of a text, cut at the first blank line after `characters`.

    Where none comes before four times that length, at the first white space; where there is none, at four times.
    """
    start = 0
    while len(text) - start > characters:
        earliest, latest = start + characters, start + 4 * characters
        cut = _BLANK_LINE.search(text, earliest, latest) or _SPACE.search(text, earliest, latest)
        stop, following = cut.span() if cut else (latest, latest)
        yield text[start:stop]
        start = following
    if text[start:].strip():
        yield text[start:]
