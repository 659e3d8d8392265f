"""Limits of a server on its requests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The most that requests may take.

    Attributes:
        length: positions of a text, prompt and suffix included; None: the length the model was trained on.
        batch: texts made at once; also the largest `n` of a request.
        queue: waiting requests; one more gets 503.
        seconds: from arrival to the last token; a request that takes longer gets 504 and frees its place.
        steps: sampling steps.
        body_bytes: bytes of a request's body.
    """

    length: int | None = None
    batch: int = 32
    queue: int = 64
    seconds: float = 120.0
    steps: int = 4096
    body_bytes: int = 1_000_000
