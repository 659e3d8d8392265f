"""data=mixture: sources in given shares of tokens, streamed from their files, and packed into rows of L tokens.

A row is of one source, and sources are drawn row by row, so shares are of tokens, whatever the lengths of documents. Documents
follow one another, each with an EOS. A document that does not end with its row goes on in the reader's next row of that source.
Indivisible examples, a prompt with its answer, stay whole, and the rest of their row is padding.

`flm.qwen.row_stream` gives the order of rows, which does not depend on the number of processes.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flm.data.corpora.corpus import Corpus
from flm.data.documents import Split
from flm.data.layouts import Row
from flm.data.loaders import Share
from flm.data.tokenizers import Tokenizer
from flm.qwen.chat import Chats
from flm.qwen.examples import ExampleReader, Texts
from flm.qwen.packing import Waiting, packed
from flm.qwen.row_stream import Mixture, RowStream
from flm.qwen.source import Source
from flm.qwen.streaming import MixtureLoader
from flm.ranges import Count, Existing, Folder, Index, OpenShare
from flm.schema import check


class MixtureCorpus(Corpus):
    """Sources with their weights.

    Args:
        sources: by name, arguments of `flm.qwen.source.Source`, with `text_key` in place of a reader; null removes a source.
        reader: of the records of all sources without a `text_key`; None: `Texts()`.
        path: folder with a folder for each source, of the source's name, in place of the hub; None: see `Source`.
        valid_fraction: of each source, see `Source`.
        valid_documents: held-out records of each source that validation uses.
        isolate_documents: restrict attention to tokens of one document.
        readers: R, number of streams of rows, each with its own part of every source; R must divide the global batch.
        prompt_growth_steps: optimiser steps over which the given part of a prompt grows from nothing to all of it. The rest of
            the prompt is learned like the answer. 0: all of it is given from the start.

    Raises:
        ValueError: arguments are not those of a source; on use, there is none. See also `Source`.
    """

    streamed = conditional = True

    def __init__(
        self,
        sources: Mapping[str, Mapping[str, Any] | None],
        reader: ExampleReader | None = None,
        path: Existing | None = None,
        valid_fraction: OpenShare = 0.005,
        valid_documents: Count = 64,
        isolate_documents: bool = True,
        readers: Count = 8,
        prompt_growth_steps: Index = 0,
        cache_dir: Folder | None = None,
    ):
        super().__init__(cache_dir=cache_dir)
        self.sources = [
            _source(name, dict(options), reader or Texts(), path, valid_fraction)
            for name, options in sources.items()
            if options is not None
        ]
        self.reader, self.valid_documents = reader, valid_documents
        self.mixture = Mixture(self.sources, isolate_documents, readers, prompt_growth_steps)

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

    def open(self, tokenizer: Tokenizer, root: Path) -> None:
        """Nothing is cached: held-out rows are made on demand.

        The chat template of the training becomes the tokenizer's, so that a checkpoint is prompted by the same template.
        """
        if isinstance(self.reader, Chats):
            tokenizer.chat_template = self.reader.asking_template()

    def blocks(self, cache: Any, split: Split, length: int, tokenizer: Any, seed: int) -> "HeldOutRows":
        if split != "valid":
            raise ValueError("data: a mixture is streamed: rows to train on cannot be picked out of it")
        return HeldOutRows(self, length, tokenizer)

    def stream_loader(
        self,
        tokenizer: Tokenizer,
        length: int,
        seed: int,
        share: Share,
        state: Mapping[str, Any] | None,
        options: dict[str, Any],
    ) -> MixtureLoader:
        open_stream = partial(RowStream, self.mixture, tokenizer, length, seed, share.rows, share.own, state)
        return MixtureLoader(open_stream, share, options)


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
            waiting = Waiting(source.reader.divisible)
            for text, record, file in source.held_out(corpus.valid_documents):
                size += len(text.encode(errors="replace"))
                waiting.examples += [e for e in source.examples(record, file, tokenizer) if waiting.fits(e, length)]
            if not waiting.examples:
                raise ValueError(f"data.sources.{source.name}: no held-out example fits model.length={length}")
            while waiting.examples:
                self._rows.append(packed(waiting, length, tokenizer, corpus.mixture.isolate_documents))
        self.bytes_per_token = size / sum(float(row.weight.sum()) for row in self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Tensor:
        return self._rows[index].tokens

    def row(self, index: int) -> Row:
        return self._rows[index]

    def token_counts(self, vocab_size: int) -> Tensor:
        """How often each id has a weight above 0, int64 (V,)."""
        return sum(
            (torch.bincount(row.tokens[row.weight > 0], minlength=vocab_size) for row in self._rows),
            start=torch.zeros(vocab_size, dtype=torch.long),
        )


def _source(name: str, options: dict[str, Any], reader: ExampleReader, path: Any, valid_fraction: float) -> Source:
    key = options.pop("text_key", None)
    if path is not None:  # local files of the source's name in place of the hub's
        options |= {"hub": None, "path": Path(path) / name, "subset": None, "files": None}
    check(Source, options, f"data.sources.{name}", given=("name", "reader", "valid_fraction"))
    return Source(name, reader=reader if key is None else Texts(key), valid_fraction=valid_fraction, **options)
