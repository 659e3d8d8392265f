"""The thread that runs a server's model. It batches waiting requests of equal settings, and reports results as they come."""

import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from flm.language_model import LanguageModel
from flm.measures.film import FilmStrip
from flm.samplers.canvas import Canvas
from flm.serving.jobs import Job, Refused
from flm.serving.limits import Limits


class _Abandoned(Exception):
    """Nobody waits for this batch any more."""


@dataclass
class Counts:
    """What an engine has done since it started."""

    requests: int = 0
    refused: int = 0
    dropped: int = 0
    batches: int = 0
    texts: int = 0
    tokens: int = 0
    busy_seconds: float = 0.0  # of batches that ended in texts


class Engine:
    """Runs a model for many requests.

    Args:
        lm: the model. Nothing else may use it meanwhile.
        limits: of requests; None: the defaults.
    """

    def __init__(self, lm: LanguageModel, limits: Limits | None = None):
        self.lm, self.limits = lm, limits or Limits()
        self.counts = Counts()
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running: list[Job] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="flm-engine", daemon=True)
        self._thread.start()

    @property
    def length_limit(self) -> int:
        return self.limits.length or self.lm.length

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def submit(self, job: Job) -> None:
        """Puts a request in the queue.

        Raises:
            Refused: the queue is full, or the engine is closing.
        """
        with self._changed:
            self.counts.requests += 1
            if self._stopping or len(self._waiting) >= self.limits.queue:
                self.counts.refused += 1
                why = (
                    "the server is closing" if self._stopping else f"{self.limits.queue} requests wait already: try again later"
                )
                raise Refused(503, why)
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Stops the batch at its next step, and refuses the waiting requests."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping:
                    for job in self._waiting:
                        job.tell("refused", Refused(503, "the server is closing"))
                    self._waiting.clear()
                    return
                self._running = self._next_batch()
            if self._running:
                self._run(self._running)
                self._running = []

    def _next_batch(self) -> list[Job]:
        """The oldest request, and others of the same settings, up to the limit of texts. The caller holds the lock."""
        for job in [job for job in self._waiting if job.dropped or job.late]:
            self._waiting.remove(job)
            self._end_unfinished(job)
        if not self._waiting:
            return []
        first = self._waiting.popleft()
        batch, texts = [first], first.count
        if first.settings.seed is None:
            for job in list(self._waiting):
                if job.settings == first.settings and texts + job.count <= self.limits.batch:
                    self._waiting.remove(job)
                    batch.append(job)
                    texts += job.count
        return batch

    def _end_unfinished(self, job: Job) -> None:
        if job.dropped:
            self.counts.dropped += 1
        else:
            self.counts.refused += 1
            job.tell("refused", Refused(504, f"not done within {self.limits.seconds:g} seconds"))

    def _run(self, jobs: list[Job]) -> None:
        begun = time.monotonic()
        self.counts.batches += 1
        try:
            rows = self._generate(jobs)
        except _Abandoned:
            for job in jobs:
                self._end_unfinished(job)
        except ValueError as error:  # the sampler refuses its options or the length
            for job in jobs:
                self.counts.refused += 1
                job.tell("refused", Refused(400, " ".join(str(error).split())))
        except Exception as error:  # a defect must not end the thread that all requests wait for
            for job in jobs:
                self.counts.refused += 1
                job.tell("refused", Refused(500, f"{type(error).__name__} in the model"))
        else:
            self.counts.texts += len(rows)
            self.counts.tokens += sum(map(len, rows))
            self.counts.busy_seconds += time.monotonic() - begun
            place = 0
            for job in jobs:
                job.tell("rows", rows[place : place + job.count])
                place += job.count

    def _generate(self, jobs: list[Job]) -> list[list[int]]:
        settings, device = jobs[0].settings, self.lm.device
        canvas = Canvas.stacked([Canvas.from_pieces(job.pieces, job.count, device) for job in jobs])
        seed = secrets.randbits(31) if settings.seed is None else settings.seed
        films = {}
        place, seen = 0, -1
        for job in jobs:
            if job.watched:
                films[place] = (job, FilmStrip(count=self.limits.steps + self.length_limit))
            place += job.count

        def on_step(moment: Any) -> None:
            nonlocal seen
            if self._stopping or all(job.dropped or job.late for job in jobs):
                raise _Abandoned
            if moment.index <= seen:  # seen already: the sampler makes another candidate
                return
            seen = moment.index
            for row, (job, film) in films.items():
                if not job.dropped:
                    film(row_of(moment, row))
                    frame = film.frames.pop()
                    job.tell("state", frame.to_dict(self.lm.tokenizer) | {"steps": moment.steps, "ids": frame.tokens})

        return self.lm.fill(canvas, settings.steps, seed, on_step=on_step, **dict(settings.options)).tolist()


def row_of(moment: Any, row: int) -> Any:
    """A moment of one sequence of the batch (the batch axis stays, with size 1)."""
    only = slice(row, row + 1)

    def part(value: Any) -> Any:
        if isinstance(value, Canvas):
            return Canvas(value.tokens[only], value.editable[only], None if value.documents is None else value.documents[only])
        if isinstance(value, torch.Tensor):
            return value[only]
        return value.rows(only) if hasattr(value, "rows") else value

    return replace(moment, **{item.name: part(getattr(moment, item.name)) for item in fields(moment)})
