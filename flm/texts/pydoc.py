"""English text that every CPython carries: the language reference of `help()` and the library's docstrings.

About a megabyte of technical prose, present without network or download. Its content depends on the Python version,
which the fingerprint records. Source files are parsed, never imported.

Of the documentation only paragraphs that read as sentences are kept, one line each, in ASCII: no code, doctests, tables,
grammar, signatures or headings. A paragraph is judged by itself (words against symbols, function words, closing
punctuation), not by its mark-up, because docstrings follow no common one.
"""

import ast
import hashlib
import platform
import re
import sysconfig
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flm.data.blocks import FrameName
from flm.data.corpora.random_split import RandomSplitCorpus
from flm.data.documents import Normaliser
from flm.ranges import Count, Folder, Index, OpenShare

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


# Tests hold no prose. The others are separate packages on some systems, so with them the text would depend on what
# else is installed.
_LEFT_OUT = frozenset(
    {"__pycache__", "dist-packages", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages"}
    | {"test", "tests", "turtledemo"}
)
_MIN_CHARACTERS = 200
_CLEANED: dict[str, list[str]] = {}  # by library and topics: cleaning takes seconds, and a process may ask for it often
_CLEANING = 1  # raise when the cleaning changes, so that caches of the old text are not reused


class PydocCorpus(RandomSplitCorpus):
    """One document per help topic and per module (its docstrings in source order), cleaned to prose.

    Paragraphs are separated by one newline; a paragraph that occurred before is left out.

    Raises:
        ValueError: this Python carries no `pydoc_data.topics` or no library source (on use, not on construction).
    """

    def __init__(
        self,
        valid_fraction: OpenShare = 0.05,
        split_seed: Index = 0,
        normaliser: Normaliser | None = None,
        wrap: FrameName = "plain",
        cache_dir: Folder | None = None,
        processes: Count | None = None,
    ):
        super().__init__(valid_fraction, split_seed, normaliser, wrap, cache_dir, processes)

    def source(self) -> Iterator[str]:
        key = f"{sysconfig.get_path('stdlib')}\n{len(self._topics())}"
        if key not in _CLEANED:
            _CLEANED[key] = list(self._clean())
        return iter(_CLEANED[key])

    def source_fingerprint(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for name, text in sorted(self._topics().items()):
            digest.update(f"{name}\n{text}".encode())
        library = Path(sysconfig.get_path("stdlib"))
        for path in self._modules():
            digest.update(path.relative_to(library).as_posix().encode() + path.read_bytes())
        return {"python": platform.python_version(), "cleaning": _CLEANING, "sha256": digest.hexdigest()}

    def describe(self) -> str:
        return f"documentation of Python {platform.python_version()}"

    def _clean(self) -> Iterator[str]:
        seen: set[str] = set()
        for parts in self._texts():
            paragraphs = []
            for line in (line for part in parts for line in prose(part)):
                if line not in seen:
                    seen.add(line)
                    paragraphs.append(line)
            document = "\n".join(paragraphs)
            if len(document) >= _MIN_CHARACTERS:
                yield document

    def _texts(self) -> Iterator[list[str]]:
        for _, text in sorted(self._topics().items()):
            yield [text]
        for path in self._modules():
            yield list(_docstrings(path))

    @staticmethod
    def _topics() -> dict[str, str]:
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            raise ValueError(
                "data=pydoc: this Python has no pydoc_data.topics (some systems package it apart, e.g. as "
                "python3-doc or libpython3-stdlib): install it, or use data=text data.path=<file or folder>"
            ) from error
        return topics

    @staticmethod
    def _modules() -> list[Path]:
        library = Path(sysconfig.get_path("stdlib"))
        paths = [
            path
            for path in sorted(library.rglob("*.py"))
            if not _LEFT_OUT.intersection(part.lower() for part in path.relative_to(library).parts)
        ]
        if not paths:
            raise ValueError(f"data=pydoc: no Python source in {library}: use data=text data.path=<file or folder>")
        return paths


def _docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old library files are not the user's concern
        tree = ast.parse(path.read_bytes())
    holders = [
        node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    for node in sorted(holders, key=lambda node: getattr(node, "lineno", 0)):
        text = ast.get_docstring(node)
        if text:
            yield text
