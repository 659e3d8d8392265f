"""One request on its way through the engine. L length."""

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Pieces = Sequence[Sequence[int] | int]  # given token ids and lengths of holes, in reading order


@dataclass(frozen=True)
class Settings:
    """What texts of one batch share.

    Attributes:
        length: L of the canvas.
        steps: None: the model's own number.
        options: of the sampler, sorted by name.
        seed: None: any noise will do, so the request may share a batch with others. With a seed it gets a batch of its own,
            whose texts are then those of `LanguageModel.generate`.
    """

    length: int
    steps: int | None
    options: tuple[tuple[str, Any], ...]
    seed: int | None


class Refused(Exception):
    """Why a request got no text: an HTTP status, and one line."""

    def __init__(self, status: int, line: str):
        super().__init__(line)
        self.status, self.line = status, line


@dataclass(eq=False)
class Job:
    """A request, from the event loop it came in on to the thread of the model and back.

    Attributes:
        pieces: given token ids and lengths of holes.
        count: texts wanted.
        watched: whether states on the way are to be reported.
        deadline: on the monotonic clock.
        events: what the thread reports: ("state", dict) while it works, then ("rows", lists of L ids) or ("refused", Refused).
    """

    pieces: Pieces
    count: int
    settings: Settings
    watched: bool
    deadline: float
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    events: asyncio.Queue[tuple[str, Any]] = field(default_factory=asyncio.Queue)
    _dropped: threading.Event = field(default_factory=threading.Event)

    def drop(self) -> None:
        """Nobody waits for it any more."""
        self._dropped.set()

    @property
    def dropped(self) -> bool:
        return self._dropped.is_set()

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def tell(self, kind: str, content: Any) -> None:
        """From the thread of the model to whoever waits."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.events.put_nowait, (kind, content))
