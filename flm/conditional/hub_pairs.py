"""Published sets of prompts with responses: files of the Hugging Face hub, or the same files in a local folder."""

from collections.abc import Iterator
from typing import Any

from flm.data.corpora.hub import HubCorpus
from flm.data.corpora.pairs import Pairs
from flm.data.corpora.source_files import records
from flm.data.documents import Split
from flm.data.layouts import Layout
from flm.ranges import Count, Existing, Folder, Index, OpenShare, Text


class HubPairCorpus(Pairs):
    """Pairs out of a data set of the hub; those with an empty side are left out.

    Args:
        name, hub, train, subset, revision, path: see `HubCorpus`.
        valid: held-out split; None: hold out `valid_fraction` of the pairs of `train`.
        prompt_key, response_key: columns; dots lead into nested ones ("translation.de").
        separator, layout, valid_fraction, split_seed, cache_dir, processes: see `Pairs`.

    Raises:
        ValueError: on use: as `HubCorpus`; a side that is no text.
    """

    def __init__(
        self,
        name: Text,
        hub: Text,
        train: str = "train",
        valid: str | None = None,
        subset: str | None = None,
        revision: Text = "main",
        prompt_key: Text = "prompt",
        response_key: Text = "response",
        separator: str = "\n",
        layout: Layout | None = None,
        path: Existing | None = None,
        valid_fraction: OpenShare = 0.05,
        split_seed: Index = 0,
        cache_dir: Folder | None = None,
        processes: Count | None = None,
    ):
        is_split = valid is not None
        super().__init__(
            prompt_key, response_key, separator, layout, is_split, valid_fraction, split_seed, cache_dir, processes
        )
        # only its files are wanted: where a split has no name, what it would hold out itself means nothing
        held_out = None if is_split else 1
        self._hub = HubCorpus(name, hub, train, valid, held_out, subset, revision, path=path, cache_dir=cache_dir)

    def raw_pairs(self, split: Split) -> Iterator[tuple[str, str, str]]:
        wanted = (self.prompt_key, self.response_key)
        columns = list(dict.fromkeys(key.partition(".")[0] for key in wanted))
        for file in self._hub.files(self._hub.train if split == "train" else self._hub.valid):
            for number, record in enumerate(records(file, columns, "data.prompt_key and data.response_key"), start=1):
                place = f"data: {file}, row {number}"
                prompt, response = (_text(record, key, place) for key in wanted)
                if prompt and response:
                    yield place, prompt, response

    def source_fingerprint(self) -> dict[str, Any]:
        files = {key: value for key, value in self._hub.source_fingerprint().items() if key != "text_key"}
        return files | {"keys": [self.prompt_key, self.response_key], "separator": self.separator}

    def provenance(self) -> dict[str, Any]:
        return self._hub.provenance()

    def describe(self) -> str:
        return f"pairs of {self._hub.describe()}"


def _text(record: dict[str, Any], key: str, place: str) -> str:
    """What is under a key, "" where that is null."""
    found: Any = record
    for part in key.split("."):
        if isinstance(found, dict) and part in found:
            found = found[part]
        elif found is not None:
            raise ValueError(f'{place}: nothing under "{key}"')
    if found is not None and not isinstance(found, str):
        raise ValueError(f'{place}: "{key}" holds {type(found).__name__}, not text')
    return found or ""
