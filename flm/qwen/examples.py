"""What a record of a file is to a model: runs of tokens, some of them given."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from flm.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class Example:
    """Tokens in order, the first `given` of which are a prompt; the EOS is among them."""

    tokens: list[int]
    given: int = 0


class Unfit(Exception):
    """A record that is not what it should be; one line on why."""


class ExampleReader(Protocol):
    """How records become examples. Pickled where another process reads.

    Attributes:
        keys: of a record, those that it reads.
        divisible: whether an example may begin in one row and go on in the next.
    """

    keys: list[str]
    divisible: bool

    def fingerprint(self) -> dict[str, Any]:
        """Plain values that determine which records are passed over and how many examples the others give."""
        ...

    def text(self, record: dict[str, Any]) -> str:
        """What tells it from other records; "" passes it over. Raises `Unfit`."""
        ...

    def __call__(self, record: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Example]:
        """Examples of a record that has text. Raises `Unfit`."""
        ...


class Texts:
    """A record is a document, an EOS after it, all of it to be learned.

    Args:
        text_key: of the document.
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
