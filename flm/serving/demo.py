"""`flm demo [MODEL]`: watch a model write, in the terminal or in a browser."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import flm
from flm.serving.listening import bound, run
from flm.text_commands import Arguments

BOXED = ("builtin:text", "builtin:puzzle")  # models that come with the package


def parser() -> Arguments:
    """The parser of the command."""
    found = Arguments(prog="flm demo", description="Watch a model write.")
    found.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help=f"whatever flm.load takes, several with --web; default: {BOXED[0]}, with --web both in the box",
    )
    found.add_argument("--web", action="store_true", help="a local page in place of the terminal")
    found.add_argument("--port", type=int, default=8001, help="of the page")
    found.add_argument(
        "--steps", type=int, nargs="+", help="numbers of steps to compare in the terminal; default: 1 and the model's"
    )
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--device", help="cpu, cuda, ...; default: cuda where it is")
    return found


def demo(arguments: Sequence[str]) -> int:
    """watch a model write, in the terminal or in a browser"""
    given = parser().parse_args(arguments)
    if not given.web and len(given.models) > 1:
        raise ValueError("flm demo shows one model in the terminal; with --web several")
    if any(count < 1 for count in given.steps or ()):
        raise ValueError(f"--steps takes whole numbers of at least 1, not {min(given.steps)}")
    listening = bound("127.0.0.1", given.port) if given.web else None
    given.models = given.models or list(BOXED if given.web else BOXED[:1])
    loaded = [flm.load(model, given.device) for model in given.models]
    if listening is None:
        steps = given.steps or sorted({1, loaded[0].steps})
        terminal_demo_of(loaded[0], steps, given.seed)
        return 0
    try:
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError("this needs two packages more: pip install starlette uvicorn") from error

    from flm.serving.engine import Engine
    from flm.serving.web_demo import web_demo

    names = [Path(model).name for model in given.models]
    names = [name if names.count(name) == 1 else model for name, model in zip(names, given.models, strict=True)]
    engines = {name: Engine(lm) for name, lm in zip(names, loaded, strict=True)}
    print(f"open http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    try:
        run(web_demo(engines), listening)
    finally:
        for engine in engines.values():
            engine.close()
    return 0


def terminal_demo_of(lm: "flm.LanguageModel", steps: list[int], seed: int) -> None:
    from flm.serving.terminal_demo import terminal_demo

    terminal_demo(lm, Console(), steps, seed)
