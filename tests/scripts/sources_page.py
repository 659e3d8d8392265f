"""docs/sources.md as rows, and its commands as a shell would run them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "sources.md"
NAME = re.compile(r"\b[A-Z][A-Z0-9_]*[A-Z](?:\.(?:ckpt|jsonl|model))?\b")  # what stands for a file or folder
STATUS = ("works", "not run: ", "differs: ", "not here")


@dataclass(frozen=True)
class Command:
    """One command of a row.

    Attributes:
        variables: of the environment, set before it.
        words: program and arguments.
    """

    variables: dict[str, str]
    words: tuple[str, ...]

    @classmethod
    def of(cls, line: str) -> "Command":
        words, variables = shlex.split(line), {}
        while re.fullmatch(r"[A-Z0-9_]+=.*", words[0]):
            name, _, value = words.pop(0).partition("=")
            variables[name] = value
        return cls(variables, tuple(words))

    @property
    def names(self) -> list[str]:
        """Of files and folders that have to be there, in the order in which they stand."""
        values = [value for key, value in self.variables.items() if key.endswith(("DIR", "PATH", "CHECKPOINT", "TOKENIZER"))]
        values += [word.partition("=")[2] if re.match(r"[\w.]+=", word) else word for word in self.words[1:]]
        return [name for value in values for name in NAME.findall(value)]

    def with_files(self, found: dict[str, Path]) -> "Command":
        def put(text: str) -> str:
            return NAME.sub(lambda match: str(found.get(match.group(), match.group())), text)

        variables = {key: put(value) for key, value in self.variables.items()}
        words = [key + equals + put(value) for key, equals, value in (word.rpartition("=") for word in self.words)]
        return Command(variables, tuple(words))


@dataclass(frozen=True)
class Row:
    claim: str
    commands: tuple[str, ...]
    status: str


def rows() -> list[Row]:
    """Of all tables that have the columns claim, command and status."""
    found, inside = [], False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")] if line.startswith("|") else []
        inside = cells == ["claim", "command", "status"] or (inside and bool(cells))
        if inside and cells[0] != "claim" and not set(line) <= set("|-"):
            claim, commands, status = cells
            found.append(Row(claim, tuple(re.findall(r"`([^`]+)`", commands)), status))
    return found


def to_run() -> list[str]:
    """The commands of rows that say "works", each once."""
    return list(dict.fromkeys(command for row in rows() if row.status.startswith("works") for command in row.commands))
