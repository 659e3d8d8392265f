"""Answers in the format of OpenAI's interface, whole or as server-sent events, made from rows of token ids."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flm.data.tokenizers import Tokenizer
from flm.samplers.canvas import Pieces


def sent(content: dict[str, Any] | str) -> bytes:
    """One server-sent event."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


def error_body(status: int, line: str) -> dict[str, Any]:
    kinds = {401: "authentication_error", 404: "not_found_error", 503: "overloaded_error", 504: "timeout_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": line, "type": kind, "param": None, "code": None}}


@dataclass
class Answer:
    """How the rows of one prompt become choices.

    Attributes:
        kind: "text_completion", "chat.completion" or "infill".
        pieces: given tokens and lengths of holes.
        first: index of its first choice.
        stops: texts before which an answer is cut.
        echo: put the prompt before the answer.
    """

    kind: str
    pieces: Pieces
    tokenizer: Tokenizer
    first: int = 0
    stops: Sequence[str] = ()
    echo: bool = False
    identity: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex[:24]}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def _hole(self) -> tuple[int, int]:
        """Start and end of the first hole."""
        start = 0
        for piece in self.pieces:
            if isinstance(piece, int):
                return start, start + piece
            start += len(piece)
        raise AssertionError("a request without a hole")

    def text(self, row: Sequence[int]) -> tuple[str, str, int]:
        """The text in the first hole up to its end, why it ended ("stop" or "length"), and its number of tokens."""
        start, end = self._hole
        ids, ended = list(row[start:end]), "length"
        if self.tokenizer.eos_id in ids:
            ids, ended = ids[: ids.index(self.tokenizer.eos_id)], "stop"
        text = self.tokenizer.text_after(row[:start], ids, skip_special=True)
        for stop in self.stops:
            if stop and stop in text:
                text, ended = text[: text.index(stop)], "stop"
        if self.echo:
            text = self.tokenizer.decode(row[:start], skip_special=True) + text
        return text, ended, len(ids)

    def choices(self, rows: Sequence[Sequence[int]]) -> tuple[list[dict[str, Any]], int]:
        """One choice per row, and the number of tokens written in all. A choice of an infill is the whole text."""
        if self.kind == "infill":
            texts = [{"index": index, "text": self.tokenizer.decode(row)} for index, row in enumerate(rows)]
            return texts, sum(map(len, rows)) - len(rows) * self.prompt_tokens()
        found, written = [], 0
        for number, row in enumerate(rows):
            text, ended, count = self.text(row)
            written += count
            body: dict[str, Any] = {"index": self.first + number, "finish_reason": ended, "logprobs": None}
            chat = self.kind == "chat.completion"
            found.append(body | ({"message": {"role": "assistant", "content": text}} if chat else {"text": text}))
        return found, written

    def prompt_tokens(self) -> int:
        return sum(len(piece) for piece in self.pieces if not isinstance(piece, int))

    def head(self, model: str, streamed: bool) -> dict[str, Any]:
        kind = self.kind + ".chunk" if streamed and self.kind == "chat.completion" else self.kind
        return {"id": self.identity, "object": kind, "created": self.created, "model": model}

    def delta(self, text: str, ended: str | None = None) -> dict[str, Any]:
        """A choice of one streamed event: the next part of the text, and at the end why it ended."""
        body: dict[str, Any] = {"index": self.first, "finish_reason": ended, "logprobs": None}
        return body | ({"delta": {"content": text}} if self.kind == "chat.completion" else {"text": text})
