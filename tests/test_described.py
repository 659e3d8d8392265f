"""docs/files.md and the picture in docs/architecture.md say what the code is today."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import describe_tree  # noqa: E402


def test_pages_are_current():
    stale = [path.name for path, text in describe_tree.pages().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"{stale}: run python scripts/describe_tree.py"


def test_picture_keeps_every_dependency():
    """Leaving out what a longer way shows loses nothing: the same rooms can be reached."""
    drawn: dict[str, set[str]] = {name: set() for name in describe_tree.imported_rooms()}
    for line in describe_tree.picture().splitlines():
        start, arrow, end = line.strip().partition(" --> ")
        if arrow:
            drawn[start].add(end)
    rooms = describe_tree.imported_rooms()
    for name in rooms:
        assert describe_tree.above(drawn, name) == describe_tree.above(rooms, name), name
