"""What one server lends to requests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        length: positions of a text at most, prompt and suffix included; None: the length the model was trained on.
        batch: texts made at once at most; also the largest `n` of a request.
        queue: requests that wait at most; one more gets 503.
        seconds: from arrival to the last token; a request that takes longer gets 504 and frees its place.
        steps: sampling steps at most.
        body_bytes: of a request.
    """

    length: int | None = None
    batch: int = 32
    queue: int = 64
    seconds: float = 120.0
    steps: int = 4096
    body_bytes: int = 1_000_000
