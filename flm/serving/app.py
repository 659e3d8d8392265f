"""An HTTP server for one model: OpenAI-style completions, holes, health and metrics.

    POST /v1/completions, /v1/chat/completions, /v1/infill     GET /v1/models, /health, /metrics

`stream: true` answers with server-sent events. A model that writes left to right sends its text piece by piece. One that
writes all positions in parallel sends its states, each in an event without choices, under the key `flm` (tokens, their
probabilities, the step), and then the text.
"""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from flm.samplers.canvas import Pieces, pieces_of, positions
from flm.serving.answers import Answer, error_body, sent
from flm.serving.bodies import Asked, Chat, Completion, Ended, Infill, parsed
from flm.serving.engine import Engine
from flm.serving.jobs import Job, Refused, Settings

_PATIENCE = 0.25  # seconds between two checks that the client is still connected
Handler = Callable[[Request], Awaitable[Response]]


class Server:
    """The routes of one engine.

    Args:
        engine: runs the model.
        name: of the model, for answers.
        api_key: required by all routes but /health, as `Authorization: Bearer KEY`; None: no key is required.
        template: writes a conversation as a prompt; None: chats are refused.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        api_key: str | None = None,
        template: Callable[[list[dict[str, Any]]], str] | None = None,
    ):
        self.engine, self.name, self.api_key, self.template = engine, name, api_key, template
        self.lm = engine.lm
        self.app = Starlette(
            routes=[
                Route("/v1/completions", self._guarded(self.completions), methods=["POST"]),
                Route("/v1/chat/completions", self._guarded(self.chat), methods=["POST"]),
                Route("/v1/infill", self._guarded(self.infill), methods=["POST"]),
                Route("/v1/models", self._guarded(self.models)),
                Route("/health", self.health),
                Route("/metrics", self._guarded(self.metrics)),
            ],
            exception_handlers={HTTPException: self._unknown},
        )

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            try:
                self._check_key(request)
                return await handler(request)
            except Refused as refused:
                headers = {"Retry-After": "1"} if refused.status == 503 else None
                return JSONResponse(error_body(refused.status, refused.line), refused.status, headers)

        return guarded

    def _check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        if self.api_key is not None and not hmac.compare_digest(given.encode(), f"Bearer {self.api_key}".encode()):
            raise Refused(401, "an API key is needed: Authorization: Bearer KEY")

    async def _unknown(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse(
            error_body(error.status_code, f"{request.method} {request.url.path}: {error.detail}"), error.status_code
        )

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": self.name})

    async def models(self, request: Request) -> Response:
        model = {"id": self.name, "object": "model", "created": 0, "owned_by": "flm"}
        return JSONResponse({"object": "list", "data": [model]})

    async def metrics(self, request: Request) -> Response:
        """Counters and gauges in the text format of Prometheus."""
        counters = {f"{name}_total": value for name, value in vars(self.engine.counts).items()}
        gauges = {"waiting": self.engine.waiting, "running": self.engine.running}
        lines = []
        for kind, found in (("counter", counters), ("gauge", gauges)):
            for name, value in found.items():
                lines += [f"# TYPE flm_{name} {kind}", f"flm_{name} {value}"]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    async def completions(self, request: Request) -> Response:
        asked: Completion = parsed(Completion, await self._body(request))
        suffix = self._encoded("suffix", asked.suffix, True) if asked.suffix else []
        answers = []
        for prompt in asked.prompts:
            ids = self._encoded("prompt", prompt) if isinstance(prompt, str) else self._checked(prompt)
            pieces = [ids, self._hole(asked.max_tokens, len(ids) + len(suffix)), suffix]
            answers.append(self._answer("text_completion", pieces, asked, len(answers) * asked.n, asked.echo))
        return await self._respond(request, asked, answers)

    async def chat(self, request: Request) -> Response:
        asked: Chat = parsed(Chat, await self._body(request))
        if self.template is None:
            raise Refused(
                400, f"messages: {self.name} has no chat template; use /v1/completions, or name one (--chat-template)"
            )
        try:
            prompt = self.template([message.model_dump(exclude_none=True) for message in asked.messages])
        except ValueError as error:
            raise Refused(400, f"messages: {error}") from error
        ids = self._encoded("messages", prompt)
        pieces = [ids, self._hole(asked.max_completion_tokens or asked.max_tokens, len(ids))]
        return await self._respond(request, asked, [self._answer("chat.completion", pieces, asked)])

    async def infill(self, request: Request) -> Response:
        """The whole text with its holes filled, one choice per text."""
        asked: Infill = parsed(Infill, await self._body(request))
        try:
            pieces = pieces_of(asked.template, lambda text, goes_on: self._encoded("template", text, goes_on), "template")
        except ValueError as error:
            raise Refused(400, str(error)) from error
        return await self._respond(request, asked, [Answer("infill", pieces, self.lm.tokenizer)])

    async def _body(self, request: Request) -> bytes:
        limit, content = self.engine.limits.body_bytes, bytearray()
        async for part in request.stream():
            content += part
            if len(content) > limit:
                raise Refused(413, f"the body is larger than {limit} bytes")
        return bytes(content)

    def _encoded(self, key: str, text: str, goes_on: bool = False) -> list[int]:
        try:
            return self.lm.tokenizer.encode_exactly(text, key, goes_on)
        except ValueError as error:
            raise Refused(400, str(error)) from error

    def _checked(self, ids: list[int]) -> list[int]:
        if max(ids) >= self.lm.tokenizer.vocab_size:
            raise Refused(400, f"prompt: token id {max(ids)} is beyond the vocabulary of {self.lm.tokenizer.vocab_size}")
        return ids

    def _hole(self, wanted: int | None, given: int) -> int:
        room = self.engine.length_limit - given
        if room < 1:
            raise Refused(400, f"prompt: {given} tokens leave no room in {self.engine.length_limit}")
        if wanted is not None and wanted > room:
            raise Refused(400, f"max_tokens: {wanted} and {given} given tokens do not fit {self.engine.length_limit}")
        return wanted or room

    def _answer(self, kind: str, pieces: Pieces, asked: Ended, first: int = 0, echo: bool = False) -> Answer:
        return Answer(kind, pieces, self.lm.tokenizer, first, asked.stops, echo)

    def _job(self, pieces: Pieces, asked: Asked) -> Job:
        limits = self.engine.limits
        length = positions(pieces)
        checks = (
            ("n", asked.n, limits.batch),
            ("steps", asked.steps or 1, limits.steps),
            ("length", length, self.engine.length_limit),
        )
        for key, value, most in checks:
            if value > most:
                raise Refused(400, f"{key}: {value} is more than this server allows, {most}")
        options = asked.sampler_options()
        try:
            self.lm.sampler_options(**dict(options))
        except (ValueError, TypeError) as error:
            raise Refused(400, " ".join(str(error).split())) from error
        settings = Settings(length, asked.steps, options, asked.seed)
        return Job(pieces, asked.n, settings, asked.stream, time.monotonic() + limits.seconds)

    async def _respond(self, request: Request, asked: Asked, answers: list[Answer]) -> Response:
        if asked.stream and (len(answers) > 1 or asked.n > 1):
            raise Refused(400, "stream: one prompt and n=1 at a time")
        jobs = [self._job(answer.pieces, asked) for answer in answers]
        try:
            for job in jobs:
                self.engine.submit(job)
            if asked.stream:
                return StreamingResponse(self._events(jobs[0], answers[0], asked), media_type="text/event-stream")
            rows = [await self._rows(job, request) for job in jobs]
        except BaseException:
            for job in jobs:
                job.drop()
            raise
        return JSONResponse(self._whole(answers, rows))

    def _whole(self, answers: list[Answer], rows: list[list[list[int]]]) -> dict[str, Any]:
        choices, written = [], 0
        for answer, found in zip(answers, rows, strict=True):
            own, count = answer.choices(found)
            choices += own
            written += count
        read = sum(answer.prompt_tokens() for answer in answers)
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return answers[0].head(self.name, streamed=False) | {"choices": choices, "usage": usage}

    async def _rows(self, job: Job, request: Request) -> list[list[int]]:
        """The texts of a job. Raises Refused if it is refused or if the client disconnects."""
        while True:
            try:
                kind, content = await asyncio.wait_for(job.events.get(), _PATIENCE)
            except TimeoutError:
                if await request.is_disconnected():
                    raise Refused(499, "the client is gone") from None
                continue
            if kind == "refused":
                raise content
            if kind == "rows":
                return content

    async def _events(self, job: Job, answer: Answer, asked: Asked) -> AsyncIterator[bytes]:
        """The server-sent events of a job. If the client disconnects, this generator is closed, and the job dropped."""
        head, told = answer.head(self.name, streamed=True), ""
        piecewise = self.lm.has_fixed_steps and answer.kind != "infill"
        held = max((len(stop) - 1 for stop in answer.stops), default=0)  # characters that may be the beginning of a stop
        try:
            while True:
                kind, content = await job.events.get()
                if kind == "refused":
                    yield sent(error_body(content.status, content.line))
                    return
                if kind == "rows":
                    break
                if not piecewise:
                    yield sent(head | {"choices": [], "flm": content})
                    continue
                row = content["ids"]
                known = row[: row.index(None)] if None in row else row
                text, ended, _ = answer.text(known)
                ready = text if ended == "stop" else text[: max(len(told), len(text) - held)]
                if ready.startswith(told) and not ready.endswith("\N{REPLACEMENT CHARACTER}") and ready != told:
                    yield sent(head | {"choices": [answer.delta(ready[len(told) :])]})
                    told = ready
            whole = self._whole([answer], [content])
            if answer.kind == "infill":
                yield sent(head | {"choices": whole["choices"]})
            else:
                text, ended, _ = answer.text(content[0])
                yield sent(head | {"choices": [answer.delta(text[len(told) :], ended)]})
            if asked.stream_options is not None and asked.stream_options.include_usage:
                yield sent(head | {"choices": [], "usage": whole["usage"]})
            yield sent("[DONE]")
        finally:
            job.drop()
