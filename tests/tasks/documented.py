"""Commands that README, docs and the heads of recipes show, with what a shell would make of them."""

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_HISTORY = ("LOG.md",)  # what was run then, not what to run now
_SHELL = ("python", "bash", "pip", "mkdocs", "torchrun", "srun", "git")  # programs beside flm that a line may start
_STARTS = "flm|python|bash|pip|mkdocs|torchrun|srun"


@dataclass(frozen=True)
class Command:
    """One command: where it stands, the program (main.py, flm, or what a shell would start), its arguments, and the
    variables that it is given."""

    place: str
    program: str
    arguments: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def line(self) -> str:
        return self.place.partition(": ")[2]


def commands(suffix: str) -> Iterator[Command]:
    """Those of this program, of .md or .yaml files."""
    for file in (*pages(), *sorted((ROOT / "configs").rglob("*.yaml"))):
        if file.suffix == suffix:
            yield from (command for command in commands_of(file) if command.program in ("main.py", "flm"))


def pages() -> list[Path]:
    return [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name not in _HISTORY)]


def commands_of(file: Path) -> Iterator[Command]:
    """All of one file, in its order."""
    text = file.read_text(encoding="utf-8")
    for line, words, variables in _lines(_of_markdown(text) if file.suffix == ".md" else _of_yaml(text)):
        found = _command(f"{file.relative_to(ROOT)}: {line}", words, variables)
        if found is not None:
            yield found


def files_of(page: Path) -> dict[str, str]:
    """Blocks of Python that begin with the name of a file, `# my_algorithm.py`, by that name."""
    blocks = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
    return dict(blocks)


def sessions_of(page: Path) -> list[str]:
    """Blocks of Python that begin with `import flm`, or with a line that imports from it."""
    begins, block = r"    (?:import flm|from (?:flm|transformers)\S* import).*\n", r"(?:(?:    .*)?\n)*"
    found = re.findall(f"^{begins}{block}", page.read_text(encoding="utf-8"), re.M)
    return [textwrap.dedent(block) for block in found]


def _of_markdown(text: str) -> str:
    """Blocks of code, indented or fenced; and single commands in running text, a line each."""
    blocks, fenced = [], False
    for line in re.sub(r"\\\n *", " ", text).splitlines():
        fenced ^= line.lstrip().startswith("```")
        blocks += [line] if fenced or line.startswith("    ") else re.findall(rf"`((?:{_STARTS}) [^`]+)`", line)
    return "\n".join(blocks)


def _of_yaml(text: str) -> str:
    """The command in the head of an option: as far as a colon or a remark in brackets."""
    found = [re.sub(r"(: | {2,}\(|:$).*", "", line.lstrip("# ")) for line in text.splitlines()[:3]]
    return "\n".join(line for line in found if line.startswith("python main.py"))


def _lines(text: str) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Every line that a shell can take apart, with the variables that lines before it set, and those they export."""
    variables: dict[str, str] = {}
    exported: dict[str, str] = {}
    for line in text.splitlines():
        line = line.strip()
        expanded = re.sub(r"\$\{?(\w+)\}?", lambda match: variables.get(match.group(1), match.group(0)), line)
        try:
            words = shlex.split(expanded, comments=True)
        except ValueError:
            continue
        settings = dict(word.partition("=")[::2] for word in words[1:]) if words[:1] == ["export"] else {}
        if settings:
            exported.update(settings)
            variables.update(settings)
        elif len(words) == 1 and (match := re.fullmatch(r"(\w+)=(.*)", words[0])):
            variables[match.group(1)] = match.group(2)
        elif words:
            yield line, words, dict(exported)


def _command(place: str, words: list[str], exported: dict[str, str]) -> Command | None:
    variables = dict(exported)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, value = words[0].partition("=")
        variables[name] = value
        words = words[1:]
    if not words or words[0] not in ("flm", *_SHELL):
        return None
    given = tuple(sorted(variables.items()))
    at = next((index for index, word in enumerate(words[:6]) if word == "main.py"), None)
    if at is not None:
        return Command(place, "main.py", tuple(word for word in words[at + 1 :] if word != "..."), given)
    return Command(place, words[0], tuple(words[1:]), given) if len(words) > 1 else None
