"""A task that somebody else brings: the one of docs/puzzles.md."""

import re
from pathlib import Path

_PAGE = Path(__file__).resolve().parents[2] / "docs/puzzles.md"
exec(re.search(r"```python\n(.*?)```", _PAGE.read_text(encoding="utf-8"), re.DOTALL)[1])
