"""Result files read back: JSON of this format, checked before use, from sources that need not be trusted."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, StrictBool, StrictStr, ValidationError

from flm.handed_in import parsed, read_text
from flm.measures.estimate import Estimate

FORMAT_VERSION = 1

Text = Annotated[StrictStr, Field(max_length=1000)]
Real = Annotated[float, Strict()]  # nan and infinity are results too
Whole = Annotated[int, Strict(), Field(ge=-(1 << 63), lt=1 << 63)]
Count = Annotated[Whole, Field(ge=0)]
Scalar = StrictBool | Whole | Real | Text | None  # whole numbers stay whole

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
Model = TypeVar("Model", bound=BaseModel)


class Content(BaseModel):
    """Base of the models of what a result file must hold; further keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class EstimateContent(Content):
    """An `Estimate` as result files hold it."""

    mean: Real
    standard_error: Real | None
    count: Count

    def estimate(self) -> Estimate:
        return Estimate(self.mean, self.standard_error, self.count)


def read_result(path: str | Path, kind: str | None = None) -> dict[str, Any]:
    """The content of a result file of this format.

    Args:
        kind: that it must be of; None: any.

    Raises:
        ValueError: there is no such file, or it is no result, too large, or of another format or kind.
    """
    content = read_json(path)
    if not isinstance(content, dict) or "format_version" not in content:
        raise ValueError(f"{path}: not a result file of this project: it names no format_version")
    if content["format_version"] != FORMAT_VERSION:
        versions = content.get("versions")
        writer = versions.get("flm") if isinstance(versions, dict) else None
        raise ValueError(
            f"{path}: result format {_short(content['format_version'])}, written by version {_short(writer)}; this code reads "
            f"format {FORMAT_VERSION}: make the result again, or use the version that wrote it"
        )
    if kind is not None and content.get("kind") != kind:
        raise ValueError(f"{path}: a result of kind {_short(content.get('kind'))}, {kind!r} is needed here")
    return content


def read_json(path: str | Path) -> Any:
    """The value in a JSON file. Raises ValueError, naming the file, if it is missing, too large, or not JSON."""
    try:
        text = read_text(path)
        content = parsed(text)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such result file") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable result file ({error})") from error
    if _SURROGATE.search(text):
        _check_characters(content, path)
    return content


def checked(model: type[Model], content: Any) -> Model:
    """The content as an instance of `model`. Raises ValueError, in one line that names the place in the file."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "content"
        found = "" if first["type"] == "missing" else f", not {_short(first['input'])}"
        raise ValueError(f"{_short(place, 120, quoted=False)}: {first['msg']}{found}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _short(value: Any, length: int = 60, quoted: bool = True) -> str:
    """A value in one line of about `length` characters."""
    if isinstance(value, Mapping | list):  # the repr may be as large as the file
        return f"{'an object' if isinstance(value, Mapping) else 'a list'} of {len(value)}"
    text = repr(value[: 2 * length] if isinstance(value, str) else value) if quoted else " ".join(str(value).split())
    return text if len(text) <= length else text[:length] + "..."


def _check_characters(content: Any, path: str | Path) -> None:
    """Raises ValueError if a text holds half of a surrogate pair, which could not be written to a report."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError(f"{path}: not a readable result file (a text holds half of a surrogate pair)")
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value
