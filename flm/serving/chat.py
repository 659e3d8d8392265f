"""Finding the chat template of a server's model."""

import json
from pathlib import Path

from flm.data.pretrained_tokenizer import ChatTemplate
from flm.language_model import LanguageModel

TEMPLATE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
_MOST_CHARACTERS = 1_000_000  # of a template


def chat_template(lm: LanguageModel, given: str | None = None) -> ChatTemplate | None:
    """The template in a given file or folder, else the tokenizer's, else that of the model's folder. None: there is none.

    Raises:
        ValueError: the given file or folder has no template, or a template is damaged.
    """
    if given is None:
        if lm.tokenizer.chat_template is not None:
            return ChatTemplate.of(lm.tokenizer)
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


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
