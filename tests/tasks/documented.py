"""Commands that README, docs and the heads of recipes show, with what a shell would make of them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_HISTORY = ("LOG.md",)  # what was run then, not what to run now


@dataclass(frozen=True)
class Command:
    """One command: where it stands, the program (main.py or flm), and its arguments."""

    place: str
    program: str
    arguments: tuple[str, ...]


def commands(suffix: str) -> Iterator[Command]:
    """Of .md or .yaml files."""
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "configs").rglob("*.yaml"))):
        if file.suffix == suffix and file.name not in _HISTORY:
            text = file.read_text(encoding="utf-8")
            for line, words in _lines(_of_markdown(text) if file.suffix == ".md" else _of_yaml(text)):
                found = _command(f"{file.relative_to(ROOT)}: {line}", words)
                if found is not None:
                    yield found


def _of_markdown(text: str) -> str:
    """Blocks of code, indented or fenced; and single commands in running text, a line each."""
    blocks, fenced = [], False
    for line in re.sub(r"\\\n *", " ", text).splitlines():
        fenced ^= line.lstrip().startswith("```")
        blocks += [line] if fenced or line.startswith("    ") else re.findall(r"`((?:python main\.py|flm) [^`]+)`", line)
    return "\n".join(blocks)


def _of_yaml(text: str) -> str:
    """The command in the head of an option: as far as a colon or a remark in brackets."""
    found = [re.sub(r"(: | {2,}\(|:$).*", "", line.lstrip("# ")) for line in text.splitlines()[:3]]
    return "\n".join(line for line in found if line.startswith("python main.py"))


def _lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """Every line that a shell can take apart, with the variables that lines before it set."""
    variables: dict[str, str] = {}
    for line in text.splitlines():
        line = line.strip()
        expanded = re.sub(r"\$\{?(\w+)\}?", lambda match: variables.get(match.group(1), match.group(0)), line)
        try:
            words = shlex.split(expanded, comments=True)
        except ValueError:
            continue
        if len(words) == 1 and (match := re.fullmatch(r"(\w+)=(.*)", words[0])):
            variables[match.group(1)] = match.group(2)
        elif words:
            yield line, words


def _command(place: str, words: list[str]) -> Command | None:
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[:1] == ["flm"] and len(words) > 1:
        return Command(place, "flm", tuple(words[1:]))
    at = next((index for index, word in enumerate(words[:4]) if word == "main.py"), None)
    if at is None or words[0] not in ("python", "torchrun", "srun"):
        return None
    return Command(place, "main.py", tuple(word for word in words[at + 1 :] if word != "..."))
