"""Reading small files from untrusted sources, with limits on size and nesting."""

import json
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 16 << 20  # parsed JSON takes up to thirty times its size in memory
VOCABULARY_BYTES = 128 << 20  # for a tokenizer's files; those of published models have up to 40 MB


def regular_file(path: str | Path, max_bytes: int = MAX_BYTES) -> Path:
    """The path, checked to be a regular file of at most `max_bytes`.

    Raises OSError or ValueError. Not every message names the file, so callers add it.
    """
    found = Path(path).stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is not a file")
    if found.st_size > max_bytes:
        raise ValueError(f"it has {found.st_size:,} bytes, more than the {max_bytes:,} that such a file may have")
    return Path(path)


def read_text(path: str | Path, max_bytes: int = MAX_BYTES) -> str:
    """A UTF-8 file's text. Raises as `regular_file`."""
    return regular_file(path, max_bytes).read_text(encoding="utf-8")


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError if it is not JSON, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: str | Path, max_bytes: int = MAX_BYTES) -> Any:
    """The value in a JSON file. Raises as `regular_file` and `parsed`."""
    return parsed(read_text(path, max_bytes))
