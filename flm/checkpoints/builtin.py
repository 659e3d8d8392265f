"""Models that come with the package, by name: `builtin:text` and `builtin:puzzle`. flm/box/README.md says what they are."""

from pathlib import Path

BOX = Path(__file__).resolve().parents[1] / "box"
PREFIX = "builtin:"


def names() -> dict[str, Path]:
    """The file of each."""
    return {f"{PREFIX}{path.stem}": path for path in sorted(BOX.glob("*.flmpack"))}


def builtin(source: str) -> Path | None:
    """The file that such a name stands for; None for any other name.

    Raises:
        ValueError: there is no such model, and which there are.
    """
    if not source.startswith(PREFIX):
        return None
    found = names()
    if source not in found:
        raise ValueError(f"{source}: no such model comes with the package; there are: {', '.join(found) or 'none'}")
    return found[source]
