"""Writes what can be read off the code into docs/: `python scripts/describe_tree.py`.

`--check` only says what is out of date.
docs/files.md gets the first sentence of each file's docstring, docs/architecture.md the picture of which room imports which.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "flm"
BEGIN, END = "<!-- from the imports: scripts/describe_tree.py -->", "<!-- end -->"
HEAD = """# What each file holds

The first sentence of each file's docstring, written by `python scripts/describe_tree.py`. Shapes, units and sources are inside.

| folder | |
|---|---|
| `main.py` | the command line: composes the config, runs the task that `mode` names |
| `configs/` | one group per thing a user swaps; `experiment/` holds recipes, each with the command that runs it |
| `scripts/` | quickstart, tests, comparison, published recipes: thin launchers |
| `tests/` | mirrors `flm/`; golden losses |
"""


def first_sentence(path: Path) -> str:
    """Of the docstring; a name for a file without one is no description, so it is an error."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not text:
        raise SystemExit(f"{path.relative_to(ROOT)} has no docstring to describe it by")
    sentence = re.split(r"(?<=[^.\d])[.:;](?:\s|$)|\n\n", text, maxsplit=1)[0]
    return " ".join(sentence.split()).replace("|", "\\|")


def files_page() -> str:
    parts = [HEAD]
    for folder in sorted({path.parent for path in PACKAGE.rglob("*.py")}):
        paths = [path for path in sorted(folder.glob("*.py")) if path.stat().st_size]
        if not paths:
            continue
        parts.append(f"\n## `{folder.relative_to(ROOT)}/`\n\n| file | |\n|---|---|\n")
        parts += [f"| `{path.name}` | {first_sentence(path)} |\n" for path in paths]
    return "".join(parts)


def room(module: str) -> str:
    """The part of `flm` a module is in: a folder, or a file beside the folders."""
    return module.split(".")[1]


def imported_rooms() -> dict[str, set[str]]:
    """Which rooms each room imports, imports inside functions included."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own.startswith("__"):
            continue
        needs = found.setdefault(own, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            needs |= {room(name) for name in names if name.startswith("flm.")}
        needs.discard(own)
    return found


def above(rooms: dict[str, set[str]], start: str) -> set[str]:
    """All that a room needs, directly or not."""
    seen: set[str] = set()
    todo = list(rooms[start])
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += rooms.get(name, ())
    return seen


def picture() -> str:
    """Mermaid: an arrow from each room to those it imports, without arrows that a longer way already shows."""
    rooms = imported_rooms()
    lines = ["```mermaid", "flowchart TD"]
    for name in sorted(rooms):
        count = len(list((PACKAGE / name).rglob("*.py"))) if (PACKAGE / name).is_dir() else 0
        label = f"{name}<br/>{count} files" if count else f"{name}.py"
        lines.append(f'    {name}(["{label}"]):::wing' if (PACKAGE / name / "wing.py").is_file() else f'    {name}["{label}"]')
    for name in sorted(rooms):
        needs = rooms[name]
        direct = {other for other in needs if not any(other in above(rooms, middle) for middle in needs - {other})}
        lines += [f"    {name} --> {other}" for other in sorted(direct)]
    return "\n".join([*lines, "    classDef wing stroke-dasharray: 4 3", "```"])


def pages() -> dict[Path, str]:
    """Content by file, as it should be."""
    architecture = ROOT / "docs" / "architecture.md"
    before, _, rest = architecture.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    drawn = f"{before}{BEGIN}\n{picture()}\n{END}{after}"
    return {ROOT / "docs" / "files.md": files_page(), architecture: drawn}


def main() -> int:
    stale = {path: text for path, text in pages().items() if path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        if "--check" in sys.argv:
            print(f"{path.relative_to(ROOT)} is out of date: run python scripts/describe_tree.py")
        else:
            path.write_text(text, encoding="utf-8")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
