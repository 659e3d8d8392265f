"""Bodies of requests: those of OpenAI's completion interface, and those for a model that fills holes.

Unknown keys are refused: whoever sends a key expects it to have an effect.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flm.serving.jobs import Refused

Text = Annotated[str, Field(max_length=200_000)]
Positive = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class Asked(BaseModel):
    """Fields of every kind of request.

    Attributes:
        model: not read; one server has one model.
        steps: sampling steps; None: the model's own number.
        options: of the sampler; they override the model's own.
        stream: send events while the text is written, in place of one answer.
        user: not read.
    """

    model_config = ConfigDict(extra="forbid")
    model: str | None = None
    n: Positive = 1
    steps: Positive | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    seed: Seed | None = None
    stream: Annotated[bool, Field(strict=True)] = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    def sampler_options(self) -> tuple[tuple[str, Any], ...]:
        """Options sorted by name. `top_p` 1 restricts nothing and is left out, since some samplers lack the option."""
        own = {"temperature": self.temperature, "top_p": None if self.top_p == 1 else self.top_p}
        merged = self.options | {key: value for key, value in own.items() if value is not None}
        return tuple(sorted(merged.items()))


class Ended(Asked):
    """Kinds of request whose answer may end early.

    Attributes:
        max_tokens: length of the hole to fill; None: the rest of the model's length.
        stop: texts before which an answer is cut.
    """

    max_tokens: Positive | None = None
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


Ids = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1, max_length=200_000)]


class Completion(Ended):
    """POST /v1/completions. A prompt is text or token ids, or a list of either."""

    prompt: Text | Ids | Annotated[list[Text | Ids], Field(min_length=1, max_length=256)] = ""
    suffix: Text | None = None
    echo: Annotated[bool, Field(strict=True)] = False

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: Text
    name: str | None = None


class Chat(Ended):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Positive | None = None


class Infill(Asked):
    """POST /v1/infill. A number in brackets is a hole of so many tokens, as in "The [8] sat on the [4]."."""

    template: Text


def parsed(kind: type[BaseModel], content: bytes) -> Any:
    """The body of a request.

    Raises:
        Refused: 400, and a line with the key, its value, and what is wrong.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=True)[0]
        key = ".".join(str(part) for part in first["loc"] if not str(part)[:1].isupper()) or "the body"
        given = repr(first.get("input"))
        shown = "" if first["type"] in ("missing", "json_invalid") or len(given) > 80 else f", not {given}"
        raise Refused(400, f"{key}: {first['msg'][:1].lower()}{first['msg'][1:]}{shown}") from error
    except RecursionError as error:
        raise Refused(400, "the body: nested too deeply") from error
