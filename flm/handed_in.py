"""Small files that somebody may have handed in, read to their end: no larger than such a file is, and no deeper nested."""

import json
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 16 << 20  # parsed, JSON takes up to thirty times its size in memory
VOCABULARY_BYTES = 128 << 20  # of a tokenizer's files; those of published models have up to 40 MB


def regular_file(path: str | Path, max_bytes: int = MAX_BYTES) -> Path:
    """The path, of a file that can be read to its end. Raises OSError or ValueError, not all of which name it."""
    found = Path(path).stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is not a file")
    if found.st_size > max_bytes:
        raise ValueError(f"it has {found.st_size:,} bytes, more than the {max_bytes:,} that such a file may have")
    return Path(path)


def read_text(path: str | Path, max_bytes: int = MAX_BYTES) -> str:
    """Of UTF-8. Raises as `regular_file`."""
    return regular_file(path, max_bytes).read_text(encoding="utf-8")


def parsed(text: str | bytes) -> Any:
    """JSON. Raises ValueError where it is none, or nested too deeply to be looked through."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: str | Path, max_bytes: int = MAX_BYTES) -> Any:
    """Raises as `regular_file` and `parsed`."""
    return parsed(read_text(path, max_bytes))
