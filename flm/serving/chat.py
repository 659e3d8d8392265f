"""Conversations as one prompt: a chat template in Jinja, as model folders carry it. A template may come from anyone, so it is
filled in by Jinja's sandbox."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from flm.data.tokenizers import Tokenizer
from flm.language_model import LanguageModel

TEMPLATE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
_MOST_CHARACTERS = 1_000_000  # of a template


class ChatTemplate:
    """
    Args:
        text: of the template; it sees `messages`, `add_generation_prompt`, and `bos_token` and `eos_token` as the tokenizer
            spells them, and may refuse a conversation by `raise_exception(line)`.
        tokenizer: of the model.
        name: where it is from, for errors.

    Raises:
        ValueError: it is no template.
    """

    def __init__(self, text: str, tokenizer: Tokenizer, name: str):
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        self._known = {"bos_token": tokenizer.token(tokenizer.bos_id), "eos_token": tokenizer.token(tokenizer.eos_id)}
        try:
            self._template = environment.from_string(text)
        except TemplateError as error:
            raise ValueError(f"{name}: no chat template: {_line(error)}") from error

    def __call__(self, messages: Sequence[dict[str, Any]]) -> str:
        """The conversation as it is put to a model that is to answer.

        Raises:
            ValueError: the template refuses it, or does what no template may.
        """
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=True, **self._known)
        except SecurityError as error:
            raise ValueError(f"the chat template does what it may not: {_line(error)}") from error
        except (TemplateError, TypeError, ValueError, AttributeError, KeyError, ArithmeticError) as error:
            raise ValueError(f"the chat template refuses this conversation: {_line(error)}") from error


def chat_template(lm: LanguageModel, given: str | None = None) -> ChatTemplate | None:
    """The template in a given file or folder, else the one in the folder that a model was loaded from; None: it has none.

    Raises:
        ValueError: there is none where one was named, or it is no template.
    """
    if given is None:
        folder = None if lm.source is None else lm.source.path
        text = None if folder is None or not folder.is_dir() else _in_folder(folder)
        return None if text is None else ChatTemplate(text, lm.tokenizer, str(folder))
    path = Path(given)
    text = _in_folder(path) if path.is_dir() else _read(path) if path.is_file() else None
    if text is None:
        raise ValueError(f"--chat-template {given}: no such file, and no folder with {TEMPLATE} or a template in {CONFIG}")
    return ChatTemplate(text, lm.tokenizer, given)


def _in_folder(folder: Path) -> str | None:
    if (folder / TEMPLATE).is_file():
        return _read(folder / TEMPLATE)
    if not (folder / CONFIG).is_file():
        return None
    try:
        found = json.loads(_read(folder / CONFIG))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{folder / CONFIG}: damaged: {_line(error)}") from error
    template = found.get("chat_template") if isinstance(found, dict) else None
    return template if isinstance(template, str) else None


def _read(path: Path) -> str:
    if path.stat().st_size > 4 * _MOST_CHARACTERS:
        raise ValueError(f"{path}: larger than any chat template")
    return path.read_text(encoding="utf-8")


def _refuse(line: str) -> None:
    raise TemplateError(str(line))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
