"""English prose out of technical documentation: paragraphs that read as sentences, one line each, in ASCII.

Code, doctests, tables, grammar, signatures and headings are left out. What counts as prose is judged by the paragraph
itself (words against symbols, function words, closing punctuation), not by its mark-up, because docstrings follow no
common one.
"""

import re
import unicodedata
from collections.abc import Iterator

_TYPOGRAPHY = str.maketrans(
    {
        "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "--", "\u2026": "...",
        "\u2192": "->", "\u00a0": " ", "\u00d7": "x", "\u2212": "-", "\u2022": "*",
    }
)  # fmt: skip
_ROLE = re.compile(r":[\w:]+:`~?([^`]*)`")
_BACKTICKS = re.compile(r"`+([^`]*)`+")
_EMPHASIS = re.compile(r"(?<![\w*])\*{1,2}(\w(?:[^*\n]*\w)?)\*{1,2}(?![\w*])")
_BULLET = re.compile(r"^(\s*)([-*+o]|\d+[.)]|\([a-z\d]\)|#\.)(\s+)(?=\S)")
_NOT_PROSE_LINE = re.compile(
    r"^\s*(>>>|\.\.\.( |$)|\.\. |:\w[\w ]*:|@\w|[-=*~^#+|]{3,}|\$ |File \"|[\w.]+\([^)]*\)\s*->)|\s::=\s|Traceback \("
)
_WORD = re.compile(r"[(\"'\[]*[A-Za-z]+(?:['-][A-Za-z]+)*[)\"'\]]*[.,:;!?]*[)\"']*")
_END = re.compile(r"[.!?:][\"')]*$")
_SYMBOLS = frozenset("{}[]|\\<>=_/@#$%^&+~*")
_FUNCTION_WORDS = frozenset(
    "a an and any are as at be been before but by can does each for from has have if in into is it its may must no not "
    "of on one only or other should so such than that the then there these they this to used was were when where which "
    "while will with you your".split()
)


def prose(text: str, min_words: int = 7) -> Iterator[str]:
    """The prose paragraphs of a text, in order, each as one ASCII line of at least `min_words` words."""
    if not text.isascii():
        text = to_ascii(text)
    for paragraph in _paragraphs(text.expandtabs()):
        line = _BACKTICKS.sub(r"\1", _ROLE.sub(r"\1", " ".join(paragraph.split())))
        line = _EMPHASIS.sub(r"\1", line)
        if is_prose(line, min_words):
            yield line


def to_ascii(text: str) -> str:
    """Typographic characters spelled in ASCII and accents dropped; what has no such spelling stays."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_TYPOGRAPHY))
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def is_prose(line: str, min_words: int = 7) -> bool:
    """Whether an unwrapped paragraph reads as English sentences."""
    words = line.split()
    if len(words) < min_words or not line.isascii() or not _END.search(line):
        return False
    if not line[0].isalpha() and line[0] not in "\"'(":
        return False
    plain = sum(_WORD.fullmatch(word) is not None for word in words)
    function = sum(word.strip(".,:;()\"'").lower() in _FUNCTION_WORDS for word in words)
    symbols = sum(c in _SYMBOLS for c in line)
    return plain >= 0.75 * len(words) and function >= 0.2 * len(words) and symbols <= 0.03 * len(line)


def _paragraphs(text: str) -> Iterator[str]:
    """Runs of lines that belong together: equally indented, cut at blank lines, bullets and lines of code."""
    lines: list[str] = []
    indent = 0

    def take() -> Iterator[str]:
        if lines:
            yield "\n".join(lines)
            lines.clear()

    for line in text.split("\n"):
        if not line.strip() or _NOT_PROSE_LINE.search(line):
            yield from take()
            continue
        bullet = _BULLET.match(line)
        if bullet:
            line = " " * bullet.end() + line[bullet.end() :]
        here = len(line) - len(line.lstrip())
        if bullet or here != indent:
            yield from take()
        indent = here
        lines.append(line)
    yield from take()
