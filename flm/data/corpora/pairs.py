"""Prompts with their responses as corpora."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flm.data.corpora.random_split import RandomSplitCorpus
from flm.data.corpora.records import digest, records, text_of
from flm.data.documents import Split
from flm.data.layouts import Layout, ResponseLayout
from flm.data.pair_rows import PairRows
from flm.ranges import Count, Existing, Folder, Index, OpenShare, Text

_BETWEEN = "\x1e"  # record separator: joins a pair to one string, which the random split keeps together


class Pairs(RandomSplitCorpus):
    """Base of corpora of pairs: subclasses define `raw_pairs()`. Prompts and responses alternate as documents.

    Args:
        prompt_key, response_key: keys of the two in a record; dots lead into nested objects. prompt_key None: there are no
            prompts.
        separator: appended to every prompt.
        layout: how a pair lies in a row; None: `ResponseLayout()`.
        is_split: whether the source has held-out pairs of its own; if not, `valid_fraction` are held out at random.
        valid_fraction, split_seed, cache_dir, processes: see `RandomSplitCorpus`.
    """

    conditional = True
    divisible = False

    def __init__(
        self,
        prompt_key: str | None,
        response_key: str,
        separator: str,
        layout: Layout | None,
        is_split: bool,
        valid_fraction: OpenShare = 0.05,
        split_seed: Index = 0,
        cache_dir: Folder | None = None,
        processes: Count | None = None,
    ):
        super().__init__(valid_fraction, split_seed, cache_dir=cache_dir, processes=processes)
        self.prompt_key, self.response_key, self.separator = prompt_key, response_key, separator
        self.layout = ResponseLayout() if layout is None else layout
        self.is_split = is_split

    def raw_pairs(self, split: Split) -> Iterator[tuple[str, str, str]]:
        """(place in words, prompt, response) of each pair in a split; all pairs are in "train" if not `is_split`.

        No response is empty. Prompts are empty only where there are none.
        """
        raise NotImplementedError

    def pairs(self, split: Split) -> Iterator[tuple[str, str]]:
        """(prompt with its separator, response); the prompt is "" if there are none."""
        for pair in self._joined(split) if self.is_split else super().raw_documents(split):
            prompt, _, response = pair.partition(_BETWEEN)
            yield prompt, response

    def source(self) -> Iterator[str]:
        return self._joined("train")

    def raw_documents(self, split: Split) -> Iterator[str]:
        for prompt, response in self.pairs(split):
            if self.prompt_key is not None:
                yield prompt
            yield response

    def open(self, tokenizer: Any, root: Path) -> Any:
        if tokenizer.begins_documents:
            raise ValueError(
                f"data: the tokenizer {tokenizer.name} puts nothing behind a text, and pairs are told apart by their ends: "
                "take another tokenizer"
            )
        return super().open(tokenizer, root)

    def blocks(self, cache: Any, split: Split, length: int, tokenizer: Any, seed: int) -> Any:
        return PairRows(cache, split, self.layout, tokenizer, length, 1 if self.prompt_key is None else 2, seed)

    def _joined(self, split: Split) -> Iterator[str]:
        for place, prompt, response in self.raw_pairs(split):
            if _BETWEEN in prompt or _BETWEEN in response:
                raise ValueError(f"{place}: holds the control character U+001E, which parts prompts from responses here")
            yield ("" if self.prompt_key is None else prompt + self.separator) + _BETWEEN + response


class PairCorpus(Pairs):
    """Pairs from JSON Lines.

    Args:
        path: a .jsonl file, also .gz, or a folder of them.
        valid_path: the same for held-out pairs; None: hold out `valid_fraction` of the pairs of `path`.
        prompt_key: key of the prompt in an object; dots lead into nested ones. None: there are no prompts.
        response_key: key of the response.
        separator: appended to every prompt.
        layout: how a pair lies in a row; None: `ResponseLayout()`.
        valid_fraction, split_seed, cache_dir, processes: see `RandomSplitCorpus`.

    Raises:
        ValueError: on use, one line naming file and line: unreadable, a key missing, a prompt or response empty.
    """

    def __init__(
        self,
        path: Existing,
        valid_path: Existing | None = None,
        prompt_key: str | None = "prompt",
        response_key: Text = "response",
        separator: str = "\n",
        layout: Layout | None = None,
        valid_fraction: OpenShare = 0.05,
        split_seed: Index = 0,
        cache_dir: Folder | None = None,
        processes: Count | None = None,
    ):
        is_split = valid_path is not None
        super().__init__(
            prompt_key, response_key, separator, layout, is_split, valid_fraction, split_seed, cache_dir, processes
        )
        self.path, self.valid_path = Path(path), None if valid_path is None else Path(valid_path)

    def raw_pairs(self, split: Split) -> Iterator[tuple[str, str, str]]:
        path, key = (self.path, "data.path") if split == "train" else (self.valid_path, "data.valid_path")
        assert path is not None
        for place, record in records(path, key):
            response = text_of(record, self.response_key, place)
            prompt = "" if self.prompt_key is None else text_of(record, self.prompt_key, place)
            if not response or (self.prompt_key is not None and not prompt):
                raise ValueError(f"{place}: an empty {'prompt' if response else 'response'}: leave the line out")
            yield place, prompt, response

    def source_fingerprint(self) -> dict[str, Any]:
        return {
            "path": digest(self.path, "data.path"),
            "valid_path": None if self.valid_path is None else digest(self.valid_path, "data.valid_path"),
            "keys": [self.prompt_key, self.response_key],
            "separator": self.separator,
        }

    def describe(self) -> str:
        return f"pairs of {self.path}"
