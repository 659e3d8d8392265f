"""`flm generate|infill|nll [MODEL] ...`: the Python API as commands; the default model comes with the package."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import flm
from flm.registry import add

BOXED = "builtin:text"  # comes with the package
COMMANDS = {
    "generate": "write texts",
    "infill": "fill the holes of a text",
    "nll": "-log p(text) in nats, or an upper bound",
}


def run(arguments: Sequence[str]) -> int:
    """Runs a command; returns exit status 0.

    Raises:
        ValueError, OSError: errors that the user can mend.
    """
    command = arguments[0]
    given = parser(command).parse_intermixed_args(arguments[1:])
    for package in given.wing:
        add(package)
    weights = not given.last_weights
    hub = {"revision": given.revision, "file": given.file}
    if command == "generate" and any(map(str.isspace, given.model)) and not Path(given.model).exists():
        raise ValueError(f"{given.model}: no such model; a text to begin with is --prompt {given.model!r}")
    lm = flm.load(given.model, given.device, weights, given.trusted_module, **hub, **dict(given.published))
    if command == "nll":
        found = lm.nll(sys.stdin.read() if given.text == "-" else given.text, given.draws, given.seed)
        print(json.dumps(vars(found) | {"nats_per_token": found.nats_per_token}))
        return 0
    common: dict[str, Any] = {"n": given.n, "steps": given.steps, "seed": given.seed, "progress": True} | dict(given.option)
    if command == "infill":
        texts = lm.infill(given.template, **common)
    else:
        length = given.length
        if given.between is not None:
            if given.between < 1:
                raise ValueError(f"--between must be at least 1, not {given.between}")
            start, end = lm.tokenizer.encode(given.prompt or ""), lm.tokenizer.encode_after(given.suffix or "")
            length = len(start) + given.between + len(end)
        texts = lm.generate(prompt=given.prompt, suffix=given.suffix, length=length, **common)
    for text in texts:
        print(json.dumps(text, ensure_ascii=False) if given.json else text)
    return 0


class Arguments(argparse.ArgumentParser):
    """The parser of a command `flm NAME`. Its errors are one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message} ({self.prog} --help says what it takes)")


def parser(command: str) -> Arguments:
    """The parser of one command. MODEL may be left out; options may come before or after it."""
    found = Arguments(prog=f"flm {command}", description=COMMANDS[command])
    found.add_argument(
        "model",
        nargs="?",
        default=BOXED,
        help=f"a run folder, checkpoint, exported folder, packed artifact, or owner/model on the hub; default: {BOXED}",
    )
    found.add_argument("--device", help="cpu, cuda, ...; default: cuda where it is")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--last-weights", action="store_true", help="of a checkpoint: not the averaged weights")
    found.add_argument("--trusted-module", action="append", default=[], help="module whose model classes may be built")
    found.add_argument("--wing", action="append", default=[], help="package that adds kinds of model or of model file")
    found.add_argument("--revision", help="branch, tag or commit on the hub")
    found.add_argument("--file", help="path of a checkpoint in its repository on the hub, owt_fmlm.ckpt")
    found.add_argument(
        "--published",
        type=_option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what a published checkpoint does not say: length=128, tokenizer_name_or_path=...",
    )
    if command == "nll":
        found.add_argument("text", help="- reads standard input")
        found.add_argument("--draws", type=int, default=16, help="of a bound")
        return found
    found.add_argument("-n", type=int, default=1, help="how many texts")
    found.add_argument("--steps", type=int, help="default: what the model's recipe names")
    found.add_argument("--json", action="store_true", help="a JSON string per line")
    found.add_argument(
        "--option", type=_option, action="append", default=[], metavar="KEY=VALUE", help="of the sampler: temperature=0.9"
    )
    if command == "infill":
        found.add_argument("template", help='"The [8] sat on the [4].": holes by number of tokens')
        return found
    found.add_argument("--prompt", help="text they begin with")
    found.add_argument("--suffix", help="text they end with")
    size = found.add_mutually_exclusive_group()
    size.add_argument("--length", type=int, help="tokens in all; default: those of the texts it was trained on")
    size.add_argument("--between", type=int, metavar="N", help="tokens between prompt and suffix")
    return found


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
