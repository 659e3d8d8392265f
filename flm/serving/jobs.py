"""One request on its way through the engine. L length."""

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from flm.samplers.canvas import Pieces


@dataclass(frozen=True)
class Settings:
    """The settings that requests in one batch share.

    Attributes:
        length: L of the canvas.
        steps: of the sampler; None: the model's own number.
        options: of the sampler, sorted by name.
        seed: of the noise; None: any noise will do, so the request may share a batch with others. A request with a seed gets a
            batch of its own, and so the texts of `LanguageModel.generate`.
    """

    length: int
    steps: int | None
    options: tuple[tuple[str, Any], ...]
    seed: int | None


class Refused(Exception):
    """A request gets no text, for the reason in an HTTP status and one line."""

    def __init__(self, status: int, line: str):
        super().__init__(line)
        self.status, self.line = status, line


@dataclass(eq=False)
class Job:
    """A request, which comes from an event loop and is answered there by the model's thread.

    Attributes:
        pieces: given token ids and lengths of holes.
        count: number of texts.
        watched: whether to report intermediate states.
        deadline: on the monotonic clock, in seconds.
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
        """Says that nobody waits for it any more."""
        self._dropped.set()

    @property
    def dropped(self) -> bool:
        return self._dropped.is_set()

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def tell(self, kind: str, content: Any) -> None:
        """Reports an event from the model's thread to whoever waits in the event loop."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.events.put_nowait, (kind, content))
