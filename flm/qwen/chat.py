"""Reads conversations as a tokenizer's chat template writes them: one example per answer, with all before it given."""

import json
import logging
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

from flm.data.tokenizers import Tokenizer
from flm.qwen.examples import Example, Unfit

log = logging.getLogger(__name__)

_DEFAULT = "{{%- if {name} is not defined -%}}{{%- set {name} = {value} -%}}{{%- endif -%}}"


class Chats:
    """Reads each record as a conversation, or as a question with its answer.

    An example is a prompt and an answer. The prompt is the conversation before the answer, as the template writes it to ask for
    one. The answer ends as the template ends it. The two are tokenised separately, as in generation, so the boundary between
    them is a known position.

    Args:
        template: tokenizer folder whose chat template is used. A sandbox fills it in.
        messages_key: of a list of objects with `role` and `content`, and whatever else the template writes (`tool_calls`,
            `reasoning_content`), nulls left out; None: records have the two below.
        prompt_key, response_key: of a question and its answer.
        tools_key: of the tools of a conversation, a list or its JSON, which the template describes; None: records have none.
        answers: "all": every assistant message is the answer of an example; "last": only the last.
        thinking: value of the template's `enable_thinking` when it asks for an answer; None: the template's default.
    """

    divisible = False

    def __init__(
        self,
        template: str | os.PathLike[str],
        messages_key: str | None = "messages",
        prompt_key: str = "prompt",
        response_key: str = "response",
        answers: Literal["all", "last"] = "all",
        thinking: bool | None = None,
        tools_key: str | None = None,
    ):
        self.template, self.messages_key = os.fspath(template), messages_key
        self.prompt_key, self.response_key, self.answers = prompt_key, response_key, answers
        self.tools_key = tools_key
        self._said = [prompt_key, response_key] if messages_key is None else [messages_key]
        self.keys = self._said + ([] if tools_key is None else [tools_key])
        self.options = {} if thinking is None else {"enable_thinking": thinking}

    def asking_template(self) -> str:
        """The template, with `thinking` as its default: whoever asks by it asks as training did.

        Raises:
            ValueError: there is none.
        """
        found = _template(self.template).chat_template
        text = found["default"] if isinstance(found, dict) else found
        default = "".join(_DEFAULT.format(name=name, value=str(value).lower()) for name, value in self.options.items())
        return default + text

    def fingerprint(self) -> dict[str, Any]:
        return {"reader": "chats", "keys": self.keys, "answers": self.answers}

    def text(self, record: dict[str, Any]) -> str:
        return json.dumps(self.messages(record), ensure_ascii=False)

    def messages(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """Raises `Unfit` where there is no assistant's message, or one that is neither text nor a call of tools."""
        if self.messages_key is None:
            roles = (("user", self.prompt_key), ("assistant", self.response_key))
            found = [{"role": role, "content": record[key]} for role, key in roles]
        else:
            found = record[self.messages_key]
        if not isinstance(found, list) or not all(
            isinstance(m, dict)
            and isinstance(m.get("role"), str)
            and (isinstance(m.get("content"), str) or (m.get("content") is None and m.get("tool_calls")))
            for m in found
        ):
            raise Unfit(f"{' and '.join(self._said)} must hold messages, each with a role and a content of text")
        messages = [{"role": m["role"], "content": m.get("content") or "", **_without_nulls(m)} for m in found]
        if not any(_is_answer(m) for m in messages):
            raise Unfit(f'{" and ".join(self._said)}: no message of the role "assistant"')
        if self.tools_key is None and any(m.get("tool_calls") for m in messages):
            _warn_of_tools()
        return messages

    def tools(self, record: dict[str, Any]) -> list[Any] | None:
        """Raises `Unfit` where they are no list."""
        found = None if self.tools_key is None else record[self.tools_key]
        try:
            found = json.loads(found) if isinstance(found, str) and found else found
        except ValueError as error:
            raise Unfit(f'"{self.tools_key}" holds text that is no JSON ({error})') from error
        if found and not isinstance(found, list):
            raise Unfit(f'"{self.tools_key}" must hold a list of tools, not {type(found).__name__}')
        return _without_nulls(found) or None

    def __call__(self, record: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Example]:
        messages, tools = self.messages(record), self.tools(record)
        places = [index for index, m in enumerate(messages) if _is_answer(m)]
        for index in places if self.answers == "all" else places[-1:]:
            prompt = self._written(messages[:index], tools, True)
            whole = self._written(messages[: index + 1], tools, False)
            if not whole.startswith(prompt):
                thought = messages[index].get("reasoning_content") and self.options.get("enable_thinking") is False
                hint = ", the answer being with its reasoning: data.reader.thinking=true" if thought else ""
                raise Unfit(f"the chat template of {self.template} does not begin an answer as it asks for one{hint}")
            given = tokenizer.encode(prompt)
            answer = tokenizer.encode(whole[len(prompt) :].rstrip("\n"))
            # templates end an answer with a token of their own, Qwen3's with what is its tokenizer's EOS
            end = [] if answer[-1:] == [tokenizer.eos_id] else [tokenizer.eos_id]
            yield Example([*given, *answer, *end], len(given))

    def _written(self, messages: list[dict[str, Any]], tools: list[Any] | None, ask: bool) -> str:
        options = self.options if ask else {}
        template = _template(self.template)
        try:
            return template.apply_chat_template(messages, tools, tokenize=False, add_generation_prompt=ask, **options)
        except Exception as error:  # a template raises what it likes
            raise Unfit(f"the chat template of {self.template}: {str(error).partition(chr(10))[0]}") from error


def _is_answer(message: dict[str, Any]) -> bool:
    return message["role"] == "assistant" and bool(message["content"] or message.get("tool_calls"))


def _without_nulls(value: Any) -> Any:
    """Readers of tables give every object the keys of all, null where it has none."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


@lru_cache(maxsize=1)
def _warn_of_tools() -> None:
    log.warning("data.reader: messages call tools; data.reader.tools_key names the key that describes them, if there is one")


@lru_cache(maxsize=4)
def _template(folder: str) -> Any:
    """The folder's tokenizer, for its template.

    Raises:
        ValueError: there is none, or it has no template.
    """
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the hub, the network and the parsers each raise their own
        raise ValueError(
            f"data.reader.template={folder}: no readable tokenizer ({str(error).partition(chr(10))[0]})"
        ) from error
    if not found.chat_template:
        raise ValueError(f"data.reader.template={folder}: the tokenizer has no chat template: take one of a chat model")
    return found
