"""From the shell to a task: arguments quoted for Hydra, the composed config checked, and one line for an error."""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import hydra
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from flm.atomic import of_disk
from flm.config_files import CONFIGS, options
from flm.samplers.canvas import CANVAS_KEYS
from flm.schema import nearest
from flm.tasks import sampler_help
from flm.tasks.check import check_config
from flm.tasks.other_names import ours
from flm.tasks.swapped import fitting
from flm.tasks.wings import named, take_in

# Keys whose values are running text, which is never parsed, except null and the empty value.
_TEXT = re.compile(r"(\+{0,2}sampling\.(?:prompt|suffix|infill))=(.*)", re.DOTALL)
_VALUE = re.compile(r"(\+{0,2}[A-Za-z_][\w./@-]*)=(.*)", re.DOTALL)


def prepared(argument: str, multirun: bool = False) -> str:
    """An argument as Hydra can read it.

    Values are quoted if Hydra could not parse them, or would misread text. Options of a sampler and values that are mappings
    get the prefix `++`, since the config need not have their keys; the sampler's signature checks them later.

    Args:
        multirun: whether commas separate values to run one after the other.
    """
    text = _TEXT.fullmatch(argument)
    if text is not None:
        key, value = text.groups()
        return argument if value in ("", "null") else f"{key}={quoted(value)}"
    match = _VALUE.fullmatch(argument)
    if match is None:
        return argument
    key, value = match.groups()
    value = _readable(key, value, multirun)
    section, _, name = key.partition(".")
    adds = section == "sampling" and name not in CANVAS_KEYS
    if not key.startswith("+") and "." in key and (adds or value.startswith("{")):
        key = f"++{key}"
    return f"{key}={value}"


def quoted(text: str, keeps_interpolations: bool = False) -> str:
    """Text in quotes, which Hydra removes."""
    # in a quoted value a backslash escapes only quotes, backslashes before a quote, and interpolations
    text = re.sub(r"(\\*)'", r"\1\1\'", text)
    text = re.sub(r"(\\+)$", r"\1\1", text)
    if not keeps_interpolations:
        text = re.sub(r"(\\*)\$\{", r"\1\1\${", text)
    return f"'{text}'"


def _readable(key: str, value: str, multirun: bool) -> str:
    try:
        override = OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        return _structured(value) or quoted(value, keeps_interpolations=True)
    # a key without a dot is a group, whose options Hydra knows
    is_split = override.is_sweep_override() and not multirun and "." in key
    if is_split or value != value.strip():
        return quoted(value, keeps_interpolations=True)
    return value


def _structured(value: str) -> str | None:
    """A list or mapping that only YAML can read, in Hydra's grammar; None if it is neither."""
    if value[:1] + value[-1:] not in ("[]", "{}"):
        return None
    try:
        return written(yaml.safe_load(value))
    except yaml.YAMLError:
        return None


def written(value: Any) -> str:
    """A list, mapping or plain value in Hydra's grammar."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if isinstance(value, int | float) else quoted(str(value), keeps_interpolations=True)


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
def _run(config: DictConfig) -> None:
    try:
        _begun.append(Path(HydraConfig.get().runtime.output_dir))
        take_in(config.wings)
        check_config(config)
        hydra.utils.get_method(config.mode._target_)(config)
    except Exception as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # ends the sweep
        _failures.append(error)  # raised to Hydra, it would print its own message first


_failures: list[Exception] = []
_begun: list[Path] = []  # folders of runs that Hydra has made


def main() -> int:
    """Exit status: 0, 1 after one line on standard error (HYDRA_FULL_ERROR=1 shows the traceback instead), 130 after Ctrl-C."""
    try:
        return _status()
    except BrokenPipeError:  # whoever read the output has had enough, which is no mistake
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest as it ends
        return 0


def _asks_for_help() -> bool:
    return bool({"-h", "--help"} & set(sys.argv[1:]))


def _status() -> int:
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise errors instead of printing its own message
    multirun = bool({"-m", "--multirun"} & set(sys.argv[1:]))
    _failures.clear()
    _begun.clear()
    before = _existing(_run_folder(sys.argv[1:]))
    try:
        # flags first: Hydra needs all overrides in one place, and scripts append their arguments to their own
        given = sorted(map(ours, sys.argv[1:]), key=lambda argument: "=" in argument and argument[0] != "-")
        sys.argv[1:] = [prepared(argument, multirun) for argument in given]
        take_in(named(sys.argv[1:]))
        sys.argv[1:], notes = fitting(sys.argv[1:])
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        _run()
        if _failures:
            raise _failures[0]
    except SystemExit:
        if _asks_for_help():  # after Hydra's own help
            print(sampler_help.text(), flush=True)
        raise
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        _leave_nothing(before)
        line = unknown_key(error, sys.argv[1:]) or user_error(error, _run_folder(sys.argv[1:]))
        if wants_traceback or line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1
    return 0


def _existing(folder: str) -> Path:
    """The innermost folder of a path that exists."""
    place = Path(folder).absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    return place


def _leave_nothing(before: Path) -> None:
    """Removes the folder of a run that wrote nothing but Hydra's record of its command, and new empty folders around it.

    Args:
        before: the innermost folder of the run's path that existed before the run.
    """
    for folder in _begun:
        files = [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
        if any(path.parent != folder / ".hydra" and (path.is_symlink() or path.stat().st_size) for path in files):
            continue
        if folder == before or not folder.is_relative_to(before):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        for above in folder.parents:
            if above == before or next(above.iterdir(), None) is not None:
                break
            above.rmdir()


def user_error(error: BaseException, folder: str | None = None) -> str | None:
    """One line for an error that the command, a file or the machine caused; None for a bug.

    Args:
        folder: of the run, to name if a file could not be written and the error does not name it.
    """
    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = error.__cause__
        if cause is not None and (inner := user_error(cause)):
            return f"{inner} (in {error.full_key})" if getattr(error, "full_key", None) else inner
        return _one_line(error)
    if isinstance(error, OSError):
        return of_disk(error, folder) or _one_line(error)
    if isinstance(error, ValueError | MisconfigurationException):
        return _one_line(error)
    compiler = sys.modules.get("torch._dynamo.exc")  # imported by whoever compiles
    if compiler is not None and isinstance(error, compiler.TorchDynamoException):
        return f"model.compile: this machine's compiler failed: set model.compile=false ({str(error).partition(chr(10))[0]})"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return f"not enough memory, take a smaller model or batch: {_one_line(error)}"
    return None


def _run_folder(arguments: list[str]) -> str:
    given = [argument.partition("=")[2] for argument in arguments if argument.startswith("hydra.run.dir=")]
    return given[-1] if given else "outputs"


def unknown_key(error: BaseException, arguments: list[str]) -> str | None:
    """One line on a key that the config does not have, with the nearest one; None for other errors."""
    match = re.match(r"Could not override '([^']+)'", str(error))
    if match is None or not isinstance(error, HydraException):
        return None
    key = match.group(1)
    added = [f"++{argument}" if argument.partition("=")[0] == key else argument for argument in arguments]
    added = [argument for argument in added if argument[0] != "-" and ("=" in argument or argument[0] == "~")]  # no flags
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            check_config(
                compose("config", ["run_dir=.", *(argument for argument in added if not argument.startswith("hydra"))])
            )
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as reason:
        return user_error(reason)
    return f"{key}: the config has no such key; +{key}=... adds it"


def _one_line(error: BaseException) -> str:
    if "Config group override must be a string" in str(error):
        return "a config group is switched off by its option `none`, as in logger=none, not by null"
    absent = re.search(r"Could not find '(\w+)/([^']*)'", str(error))
    if absent is not None:
        group, name = absent.groups()
        known = ", ".join(options(group))
        return f"{group}={name}: there is no such {group}{nearest(name, options(group))}; there are {known}"
    lines = [line.strip() for line in str(error).splitlines()]
    # without Hydra's advice on adding keys and tracebacks, which would hide the error
    kept = [line for line in lines if line and not line.startswith(("Set the environment", "object_type", "reference_type"))]
    return "; ".join(kept) or type(error).__name__
