"""A mixture of sources in given shares of tokens, packed into rows of L tokens, streamed from where it lies.

A row is of one source, and sources are drawn row by row, so the shares are of tokens however long documents are. Documents lie
one after the other, an EOS after each; where one does not end with its row, it goes on in the reader's next row of that source.
What is not divisible, a prompt with its answer, stays whole, and the rest of a row is padding.

The global batch is divided among R readers, each of which has a part of every source for itself (`flm.qwen.source`). A process
runs those whose rows it needs, so batches do not depend on how many processes there are.
"""

import random
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flm.data.corpora.corpus import Corpus, Split
from flm.data.layouts import Row
from flm.data.tokenizers import Tokenizer
from flm.draws import mix_seed
from flm.qwen.examples import Example, ExampleReader, Texts
from flm.qwen.source import Position, Source, SourceReader
from flm.ranges import Count, Index, OpenShare, Text
from flm.schema import check


class MixtureCorpus(Corpus):
    """Sources with their weights.

    Args:
        sources: by name, arguments of `flm.qwen.source.Source`; `text_key` in place of a reader. One that is null is left out.
        reader: of the records of all sources without a `text_key`; None: `Texts()`.
        path: folder that holds a folder for each source, called as the source is, in place of the hub; None: see `Source`.
        valid_fraction: of each source, see `Source`.
        valid_documents: held-out records of each source that validation uses.
        isolate_documents: attention within documents only, rather than across all of a row.
        readers: R; the processes must divide it, and it must divide the global batch.
        prompt_growth_steps: optimiser steps during which the share of a prompt that is given grows from none of it to all, from
            its beginning; what is not given yet is learned like the answer. 0: all of it is given from the start.

    Raises:
        ValueError: arguments are not those of a source; on use, there is none. See also `Source`.
    """

    streamed = True

    def __init__(
        self,
        sources: Mapping[str, Mapping[str, Any] | None],
        reader: ExampleReader | None = None,
        path: Text | Path | None = None,
        valid_fraction: OpenShare = 0.005,
        valid_documents: Count = 64,
        isolate_documents: bool = True,
        readers: Count = 8,
        prompt_growth_steps: Index = 0,
        cache_dir: Text | Path | None = None,
    ):
        super().__init__(cache_dir=cache_dir)
        self.sources = [
            _source(name, dict(options), reader or Texts(), path, valid_fraction)
            for name, options in sources.items()
            if options is not None
        ]
        self.valid_documents, self.isolate_documents, self.readers = valid_documents, isolate_documents, readers
        self.prompt_growth_steps = prompt_growth_steps

    @property
    def splits(self) -> tuple[Split, ...]:
        return ("valid",)

    def raw_documents(self, split: Split) -> Iterator[str]:
        if split != "valid":
            raise ValueError("data: a mixture is streamed, so nothing can be learned from all of it: take a finished tokenizer")
        for source in self.sources:
            for text, _, _ in source.held_out(self.valid_documents):
                yield text

    def source_fingerprint(self) -> dict[str, Any]:
        if not self.sources:
            raise ValueError("data.sources names no source: {NAME: {hub: USER/SET, weight: 1.0}}")
        return {source.name: [source.weight, source.fingerprint()] for source in self.sources}

    def describe(self) -> str:
        return f"a mixture of {', '.join(source.name for source in self.sources)}"

    def open(self, tokenizer: Any, root: Path) -> None:
        """There is no cache: held-out rows are made when they are asked for."""

    def blocks(self, cache: Any, split: Split, length: int, tokenizer: Any, seed: int) -> "HeldOutRows":
        if split != "valid":
            raise ValueError("data: a mixture is streamed: rows to train on cannot be picked out of it")
        return HeldOutRows(self, length, tokenizer)

    def stream(
        self, tokenizer: Tokenizer, length: int, seed: int, rows: int, share: range, state: Mapping[str, Any] | None = None
    ) -> "RowStream":
        """Rows to train on; see `RowStream`."""
        return RowStream(self, tokenizer, length, seed, rows, share, state)

    def drawn(self, seed: int, step: int, rows: int) -> list[int]:
        """Which source each row of an optimiser step is of, by index; at most one row more or less than its share.

        One point in each of equally long parts of [0, 1), in random order: every row alone is drawn by the weights.
        """
        rng = random.Random(mix_seed(seed, step))
        places = list(range(rows))
        rng.shuffle(places)
        total = sum(source.weight for source in self.sources)
        ends = [end / total for end in accumulate(source.weight for source in self.sources)]
        points = ((place + rng.random()) / rows for place in places)
        return [next((i for i, end in enumerate(ends) if u < end), len(ends) - 1) for u in points]


class RowStream:
    """A process's rows of each global batch, one optimiser step after the other.

    Args:
        rows: G, of the global batch; row i is reader i * R // G's.
        share: which of them this process wants; the rows of whole readers.
        state: of an earlier stream, which this one continues; None: from the beginning.

    Raises:
        ValueError: R does not divide G, a reader's rows are not all in the share, or the state is of other sources.
    """

    def __init__(
        self,
        corpus: MixtureCorpus,
        tokenizer: Tokenizer,
        length: int,
        seed: int,
        rows: int,
        share: range,
        state: Mapping[str, Any] | None = None,
    ):
        count = corpus.readers
        if rows % count or share.start * count % rows or share.stop * count % rows:
            raise ValueError(
                f"data.readers={count} must divide loader.global_batch_size={rows}, and the number of processes must divide it"
            )
        self.corpus, self.tokenizer, self.length, self.seed = corpus, tokenizer, length, seed
        self.rows, self.share = rows, share
        self._numbers = range(share.start * count // rows, share.stop * count // rows)
        self._files = {source.name: source.fingerprint() for source in corpus.sources}
        if state is not None and state["files"] != self._files:
            name = next(iter(name for name in self._files if state["files"].get(name) != self._files[name]), "")
            raise ValueError(
                f"data.sources.{name}: not the files that this run began with: give those, or begin a new run with "
                "checkpointing.resume_from_ckpt=false"
            )
        self._readers = {}
        for number in self._numbers:
            for index, source in enumerate(corpus.sources):
                at = None if state is None else Position(*state["at"][f"{number}/{source.name}"])
                own = mix_seed(seed, index)
                self._readers[number, index] = SourceReader(source, tokenizer, number, count, own, length, at)

    def step(self, step: int) -> Iterator[Row]:
        """The rows of an optimiser step; to be asked for in turn."""
        drawn = self.corpus.drawn(self.seed, step, self.rows)
        growth = self.corpus.prompt_growth_steps
        shown = min(1.0, step / growth) if growth else 1.0
        for index in self.share:
            reader = self._readers[index * self.corpus.readers // self.rows, drawn[index]]
            yield packed(reader, self.length, self.tokenizer, self.corpus.isolate_documents, shown)

    def state(self) -> dict[str, Any]:
        """Plain values from which it goes on; those of several processes are put together by uniting `at`."""
        names = [source.name for source in self.corpus.sources]
        return {"files": self._files, "at": {f"{n}/{names[i]}": r.at.to_list() for (n, i), r in self._readers.items()}}


class HeldOutRows:
    """Rows (L,) of the held-out records, source by source, in memory; the last of each may end in padding.

    Attributes:
        bytes_per_token: UTF-8 bytes of the records for each position that counts.
    """

    def __init__(self, corpus: MixtureCorpus, length: int, tokenizer: Tokenizer):
        self.length = self.payload = length
        self._rows: list[Row] = []
        size = 0
        for source in corpus.sources:
            waiting = _Waiting(source.reader.divisible)
            for text, record, file in source.held_out(corpus.valid_documents):
                size += len(text.encode(errors="replace"))
                waiting.examples += [e for e in source.examples(record, file, tokenizer) if waiting.fits(e, length)]
            if not waiting.examples:
                raise ValueError(f"data.sources.{source.name}: no held-out example fits model.length={length}")
            while waiting.examples:
                self._rows.append(packed(waiting, length, tokenizer, corpus.isolate_documents))
        self.bytes_per_token = size / sum(float(row.weight.sum()) for row in self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Tensor:
        return self._rows[index].tokens

    def row(self, index: int) -> Row:
        return self._rows[index]

    def token_counts(self, vocab_size: int) -> Tensor:
        """How often each id is to be learned, int64 (V,)."""
        return sum(
            (torch.bincount(row.tokens[row.weight > 0], minlength=vocab_size) for row in self._rows),
            start=torch.zeros(vocab_size, dtype=torch.long),
        )


class _Waiting:
    """Examples in a list, taken like those of a `SourceReader`."""

    def __init__(self, divisible: bool):
        self.divisible, self.examples = divisible, list[Example]()

    def fits(self, example: Example, length: int) -> bool:
        return self.divisible or len(example.tokens) <= length

    def take(self, room: int) -> Example | None:
        if not self.examples or (not self.divisible and len(self.examples[0].tokens) > room):
            return None
        first = self.examples.pop(0)
        if len(first.tokens) > room:
            self.examples.insert(0, Example(first.tokens[room:], max(0, first.given - room)))
        return Example(first.tokens[:room], min(first.given, room))


def packed(reader: SourceReader | _Waiting, length: int, tokenizer: Tokenizer, isolate: bool, shown: float = 1.0) -> Row:
    """A row filled from a reader until there is no more, or nothing that fits.

    Args:
        isolate: number the documents; where there is padding they are numbered in any case, all alike if this is False.
        shown: share of each prompt that is given.
    """
    tokens: list[int] = []
    weight: list[float] = []
    documents: list[int] = []
    number = 0
    while len(tokens) < length and (example := reader.take(length - len(tokens))) is not None:
        given = round(example.given * shown)
        tokens += example.tokens
        weight += [0.0] * given + [1.0] * (len(example.tokens) - given)
        documents += [number] * len(example.tokens)
        number += isolate
    missing = length - len(tokens)
    whole = not missing and (number <= 1 or not isolate)
    pad = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
    # by position: where padding and EOS are one id, a genuine EOS counts all the same
    return Row(
        torch.tensor(tokens + [pad] * missing),
        torch.tensor(weight + [0.0] * missing),
        None if whole else torch.tensor(documents + [-1] * missing),
    )


def _source(name: str, options: dict[str, Any], reader: ExampleReader, path: Any, valid_fraction: float) -> Source:
    key = options.pop("text_key", None)
    if path is not None:  # files of the hub's data set, called as the source is
        options |= {"hub": None, "path": Path(path) / name, "subset": None, "files": None}
    check(Source, options, f"data.sources.{name}", given=("name", "reader", "valid_fraction"))
    return Source(name, reader=reader if key is None else Texts(key), valid_fraction=valid_fraction, **options)
