"""English text that every CPython carries: the language reference of `help()` and the library's docstrings.

About a megabyte of technical prose, present without network or download. Its content depends on the Python version,
which the fingerprint records. Source files are parsed, never imported.
"""

import ast
import hashlib
import os
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flm.data.corpora.prose import prose
from flm.data.corpora.random_split import RandomSplitCorpus
from flm.data.documents import Normaliser
from flm.data.frames import FrameName
from flm.ranges import Count, Index, OpenShare, Text

# Tests hold no prose. The others are separate packages on some systems, so with them the text would depend on what
# else is installed.
_LEFT_OUT = frozenset(
    {"__pycache__", "dist-packages", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages"}
    | {"test", "tests", "turtledemo"}
)
_MIN_CHARACTERS = 200
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
        cache_dir: Text | os.PathLike[str] | None = None,
        processes: Count | None = None,
    ):
        super().__init__(valid_fraction, split_seed, normaliser, wrap, cache_dir, processes)
        self._cleaned: list[str] | None = None

    def source(self) -> Iterator[str]:
        if self._cleaned is None:
            self._cleaned = list(self._clean())
        return iter(self._cleaned)

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
