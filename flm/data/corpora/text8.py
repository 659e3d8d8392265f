"""The text8 convention: 27 symbols, a to z and space (Mahoney, "About the test data", mattmahoney.net/dc/textdata)."""

import re
import string
from typing import Any

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SPELLING = str.maketrans(
    {
        **{str(digit): f" {word} " for digit, word in enumerate(_DIGITS)},
        # ASCII only: str.lower() would turn some other letters (the Kelvin sign) into a to z
        **dict(zip(string.ascii_uppercase, string.ascii_lowercase, strict=True)),
    }
)
_OTHER = re.compile("[^a-z]+")


class Text8Normaliser:
    """Lower case, digits spelled out one by one, every run of other characters one space; none at either end."""

    def __call__(self, text: str) -> str:
        return _OTHER.sub(" ", text.translate(_SPELLING)).strip()

    def fingerprint(self) -> dict[str, Any]:
        return {"normaliser": "text8", "version": 1}
