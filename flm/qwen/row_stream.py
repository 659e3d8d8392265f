"""The training rows of a mixture of sources, one optimiser step after the other.

R readers divide the global batch, each with its own part of every source (`flm.qwen.source`). A process runs the readers whose
rows it needs, so batches do not depend on the number of processes. If several processes share a reader's rows, each runs it.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from flm.data.layouts import Row
from flm.data.tokenizers import Tokenizer
from flm.draws import mix_seed
from flm.qwen.packing import packed
from flm.qwen.source import WINDOW, Position, Source, SourceReader

_DEALS = "files are dealt to readers"


@dataclass(frozen=True)
class Mixture:
    """Sources with their weights, and options of reading them.

    Attributes:
        isolate_documents, readers, prompt_growth_steps: see `flm.qwen.mixture.MixtureCorpus`.
    """

    sources: list[Source]
    isolate_documents: bool
    readers: int
    prompt_growth_steps: int

    def drawn(self, seed: int, step: int, rows: int) -> list[int]:
        """The index of each row's source in an optimiser step. The rows of a source differ from its share by less than two.

        Rows get one random point in each of `rows` equal parts of [0, 1), in random order, so that each row alone is drawn by
        the weights.
        """
        rng = random.Random(mix_seed(seed, step))
        places = list(range(rows))
        rng.shuffle(places)
        total = sum(source.weight for source in self.sources)
        ends = [end / total for end in accumulate(source.weight for source in self.sources)]
        points = ((place + rng.random()) / rows for place in places)
        return [next((i for i, end in enumerate(ends) if u < end), len(ends) - 1) for u in points]


class RowStream:
    """A process's rows of each global batch.

    Args:
        rows: G, of the global batch; row i is reader i * R // G's.
        share: indices of the rows that this process wants.
        state: of an earlier stream that this one continues; None: start at the beginning.

    Raises:
        ValueError: R does not divide G, or the state is of other files or settings.
    """

    def __init__(
        self,
        mixture: Mixture,
        tokenizer: Tokenizer,
        length: int,
        seed: int,
        rows: int,
        share: range,
        state: Mapping[str, Any] | None = None,
    ):
        count = mixture.readers
        if rows % count:
            raise ValueError(f"data.readers={count} must divide loader.global_batch_size={rows}")
        self.mixture, self.tokenizer, self.length, self.seed = mixture, tokenizer, length, seed
        self.rows, self.share = rows, share
        if state is not None:
            for source in mixture.sources:
                source.go_on_with(state.get("commits", {}).get(source.name))
        self._depends_on = {
            "data.readers": count,
            "seed": seed,
            "tokenizer": tokenizer.fingerprint(),
            "window": WINDOW,
            **{f"data.sources.{source.name}": source.positions_depend_on() for source in mixture.sources},
        }
        deals = state is None or _DEALS in recorded(state)  # older runs did not deal files to readers, and continue so
        if deals:
            self._depends_on[_DEALS] = True
        if state is not None:
            _check(recorded(state), self._depends_on)
        self._readers = {}
        first, last = share.start * count // rows, (share.stop - 1) * count // rows
        for number in range(first, last + 1):
            for index, source in enumerate(mixture.sources):
                at = None if state is None else Position(*state["at"][f"{number}/{source.name}"])
                own = mix_seed(seed, index)
                self._readers[number, index] = SourceReader(source, tokenizer, number, count, own, length, at, deals)
        self._run = range(first * rows // count, (last + 1) * rows // count)

    def step(self, step: int) -> Iterator[Row]:
        """The rows of an optimiser step. Steps must be asked for in order."""
        drawn = self.mixture.drawn(self.seed, step, self.rows)
        growth = self.mixture.prompt_growth_steps
        shown = min(1.0, step / growth) if growth else 1.0
        for index in self._run:  # rows of other processes are made too, since they move the readers on
            reader = self._readers[index * self.mixture.readers // self.rows, drawn[index]]
            row = packed(reader, self.length, self.tokenizer, self.mixture.isolate_documents, shown)
            if index in self.share:
                yield row

    def state(self) -> dict[str, Any]:
        """Plain values from which a stream continues. States of several processes are combined by uniting their `at`."""
        sources = self.mixture.sources
        return {
            "depends_on": self._depends_on,
            "commits": {source.name: source.commit for source in sources if source.commit is not None},
            "at": {f"{n}/{sources[i].name}": reader.at.to_list() for (n, i), reader in self._readers.items()},
        }


def recorded(state: Mapping[str, Any]) -> dict[str, Any]:
    """The settings on which a state's positions depend, by config key. Older states have only file names and readers."""
    if "depends_on" in state:
        return state["depends_on"]
    readers = 1 + max(int(key.partition("/")[0]) for key in state["at"])
    return {"data.readers": readers, **{f"data.sources.{name}": {"names": names} for name, names in state["files"].items()}}


def _check(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ValueError if a recorded setting differs from that of now. Settings that were not recorded are not compared."""
    for key in [*before, *(key for key in now if key.startswith("data.sources.") and key not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            differing = [part for part in old if old[part] != new.get(part)]
            what = f"{key} ({', '.join(differing)})" if differing else ""
            change = ""
        else:
            what = key if old != new else ""
            plain = all(value is None or isinstance(value, int) for value in (old, new))
            change = f", which was {old} and is {new}" if plain and old is not None and new is not None else ""
        if what:
            raise ValueError(
                f"{what}: not what this run began with{change}, and where its streams stand depends on it: give that again, or "
                "begin a new run with checkpointing.resume_from_ckpt=false"
            )
