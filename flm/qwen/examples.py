"""Examples for training: sequences of tokens made from the records of files, with prompts marked as given."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from flm.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class Example:
    """Tokens with the EOS, of which the first `given` are a prompt."""

    tokens: list[int]
    given: int = 0


class Unfit(Exception):
    """A record cannot be used, for the reason in one line."""


class ExampleReader(Protocol):
    """Makes examples of records. Must be picklable, since other processes may read.

    Attributes:
        keys: of a record that it reads.
        divisible: whether an example may begin in one row and go on in the next.
    """

    keys: list[str]
    divisible: bool

    def fingerprint(self) -> dict[str, Any]:
        """Plain values that determine which records are skipped and how many examples the others give."""
        ...

    def text(self, record: dict[str, Any]) -> str:
        """The text that identifies a record; a record with "" is skipped. Raises `Unfit`."""
        ...

    def __call__(self, record: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Example]:
        """Examples of a record that has text. Raises `Unfit`."""
        ...


class Texts:
    """Reads each record as one document, followed by an EOS, with nothing given.

    Args:
        text_key: of the document in a record.
    """

    divisible = True

    def __init__(self, text_key: str = "text"):
        self.keys = [text_key]

    def fingerprint(self) -> dict[str, Any]:
        return {"reader": "texts", "keys": self.keys}

    def text(self, record: dict[str, Any]) -> str:
        (value,) = record.values()
        if value is not None and not isinstance(value, str):
            raise Unfit(f'"{self.keys[0]}" holds {type(value).__name__}, not text')
        return value or ""

    def __call__(self, record: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Example]:
        yield Example([*tokenizer.encode(self.text(record)), tokenizer.eos_id])
