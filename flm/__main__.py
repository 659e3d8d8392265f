"""The command `flm`: modes of the config, texts from a model, and what wings add."""

import difflib
import itertools
import os
import sys
import textwrap
from collections.abc import Sequence

from flm import __version__, config_files, text_commands
from flm.registry import entries, load

# Recipe and folder of `flm train` without arguments: it writes words within minutes.
FIRST_TRY, FIRST_RUN = "pydoc_flm_fitted", "outputs/first"
# The model of `flm solve` when no checkpoint is named.
BOXED_SOLVER = "builtin:puzzle"
_CHECKPOINT = "eval.checkpoint_path="
_LISTS = {"report": "report.inputs", "side_by_side": "side_by_side.runs"}  # modes that read results, not a model
_MODELLESS = ("train", "benchmark")  # modes that read no model
_WIDTH = 96


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 after one line on standard error, as `python main.py`; 130 after Ctrl-C."""
    try:
        status = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest as it ends
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _run(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if given[0] in ("-V", "--version", "version"):
        print(f"flm {__version__}")
        return 0
    word, rest = given[0], given[1:]
    modes, added = mode_names(), entries("commands")
    if word in modes:
        if word == "train" and not rest:
            recipe = f"experiment={FIRST_TRY}"
            print(f"flm train: no arguments, so {recipe}: {config_files.options('experiment')[FIRST_TRY]}", flush=True)
            print(f"It goes to {FIRST_RUN}; stopped, the same command goes on. Then: flm demo {FIRST_RUN}", flush=True)
            rest = [recipe, f"hydra.run.dir={FIRST_RUN}"]
        if {"-h", "--help"} & set(rest):
            print(_help_of(word, modes[word]), flush=True)
        rest = _named(word, modes[word], rest)
        if modes[word] == "solve_eval" and not any(item.startswith((_CHECKPOINT, "-")) for item in rest):
            print(f"flm {word}: no {_CHECKPOINT}, so {BOXED_SOLVER}, which comes with the package", flush=True)
            rest = [f"{_CHECKPOINT}{BOXED_SOLVER}", *rest]
        return _task([f"mode={modes[word]}", *rest])
    if "=" in word or word.startswith(("+", "~", "-")):
        return _task(given)
    if word in text_commands.COMMANDS:
        return text_commands.run(given)
    if word in added:
        return load(added[word])(rest)
    near = difflib.get_close_matches(word, [*modes, *text_commands.COMMANDS, *added], 1)
    raise ValueError(f"flm {word}: no such command{f'; did you mean {near[0]}?' if near else ''} (flm --help lists them)")


def _named(command: str, mode: str, rest: list[str]) -> list[str]:
    """`flm sample RUN ...` as `flm sample eval.checkpoint_path=RUN ...`: words before the first KEY=VALUE or option.

    Raises:
        ValueError: there are words and the mode reads no model, or there are several and it reads one.
    """
    words = list(itertools.takewhile(lambda word: "=" not in word and word[:1] not in ("-", "+", "~"), rest))
    if not words:
        return rest
    if mode in _LISTS:
        from flm.tasks.command_line import written

        return [f"{_LISTS[mode]}={written(words)}", *rest[len(words) :]]
    if mode in _MODELLESS or len(words) > 1:
        own = f"; your own text is data=text data.path={words[0]}" if mode == "train" else ""
        raise ValueError(f"flm {command}: {words[-1]!r} is no KEY=VALUE{own} (flm {command} --help lists the keys)")
    return [f"{_CHECKPOINT}{words[0]}", *rest[1:]]


def mode_names() -> dict[str, str]:
    """Commands that are modes: `sample` and `sample_eval` for mode=sample_eval."""
    modes = config_files.options("mode")
    return {mode: mode for mode in modes} | {mode.removesuffix("_eval"): mode for mode in modes}


def help_text() -> str:
    """Commands with a line each, and the groups of the config with their options."""
    modes = config_files.options("mode")
    blocks = {
        "Modes, with overrides of the config (KEY=VALUE)": {mode.removesuffix("_eval"): line for mode, line in modes.items()},
        "A model as a command (flm COMMAND --help)": text_commands.COMMANDS
        | {name: _summary(name) for name in entries("commands")},
    }
    lines = ["flm: flow-matching language models", "", "usage: flm COMMAND ...   or   flm KEY=VALUE ... (as python main.py)"]
    for title, commands in blocks.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:18}{_fitted(line, _WIDTH - 20)}" for name, line in commands.items()]
    lines += ["", "Groups of the config (GROUP=OPTION; flm train --help shows all keys):"]
    said = config_files.group_lines()
    for group, options in config_files.groups().items():
        lines += [f"  {group:18}{said.get(group, '')}", *_listed(options)]
    return "\n".join(lines)


def _help_of(command: str, mode: str) -> str:
    """What a mode does, how it is called, and the keys that are its own; those of all modes follow."""
    takes = "FOLDER ... " if mode in _LISTS else "" if mode in _MODELLESS else "MODEL "
    lines = [f"flm {command}: {config_files.options('mode')[mode]}", "", f"usage: flm {command} {takes}KEY=VALUE ..."]
    own = config_files.own_keys(mode)
    return "\n".join([*lines, *(["", "Its own keys:", *own] if own else []), ""])


def _summary(command: str) -> str:
    """First sentence of what a wing's command does."""
    text = load(entries("commands")[command]).__doc__ or ""
    return text.strip().split("\n")[0].rstrip(".")


def _fitted(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 3].rsplit(" ", 1)[0] + " ..."


def _listed(options: list[str]) -> list[str]:
    """`a, b, c` over as many indented lines as it takes."""
    return textwrap.wrap(
        ", ".join(options), _WIDTH, initial_indent=" " * 22, subsequent_indent=" " * 22, break_on_hyphens=False
    )


def _task(overrides: list[str]) -> int:
    from flm.tasks.command_line import main as run_task

    given, sys.argv = sys.argv, [sys.argv[0], *overrides]  # where Hydra reads them
    try:
        return run_task()
    finally:
        sys.argv = given


if __name__ == "__main__":
    sys.exit(main())
