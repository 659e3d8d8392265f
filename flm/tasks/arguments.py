"""Command-line arguments as Hydra's grammar wants them, so that what the shell hands over arrives as it is."""

import re
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from flm.samplers.canvas import CANVAS_KEYS

# Running text: never read as anything else, but for null and nothing at all.
_TEXT = re.compile(r"(\+{0,2}sampling\.(?:prompt|suffix|infill))=(.*)", re.DOTALL)
_VALUE = re.compile(r"(\+{0,2}[A-Za-z_][\w./@-]*)=(.*)", re.DOTALL)


def prepared(argument: str, multirun: bool = False) -> str:
    """An argument with its value quoted for Hydra where that would not read it, or read something else than text.

    `sampling` keys that are options of a sampler are added where the config lacks them: which of them there are is the
    sampler's business. So are the keys of mappings.

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
    """Text in quotes that Hydra takes off again."""
    # in a quoted value backslashes escape only quotes, other backslashes before one, and interpolations
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
    # without a dot it is a group, of which Hydra knows the options
    is_split = override.is_sweep_override() and not multirun and "." in key
    if is_split or value != value.strip():
        return quoted(value, keeps_interpolations=True)
    return value


def _structured(value: str) -> str | None:
    """A list or mapping in Hydra's grammar, of one that only YAML can read; None if it is neither."""
    if value[:1] + value[-1:] not in ("[]", "{}"):
        return None
    try:
        return _written(yaml.safe_load(value))
    except yaml.YAMLError:
        return None


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if isinstance(value, int | float) else quoted(str(value), keeps_interpolations=True)
