"""Published data sets as corpora: files on the Hugging Face hub, or the same files in a local folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flm.data.blocks import FrameName
from flm.data.corpora.corpus import Corpus
from flm.data.corpora.download import Download, Unreachable
from flm.data.corpora.source_files import (
    KINDS,
    Digests,
    count_documents,
    files_below,
    files_of_split,
    read_documents,
    read_range,
    reader_of,
)
from flm.data.documents import Normaliser, Split
from flm.ranges import Count, Existing, Folder, Text


class HubCorpus(Corpus):
    """A data set with named splits, or one whose last documents are held out.

    Its files are those in `path`, or else in `cache_dir/name`, where they are downloaded to if the folder has none. A word in
    a file's path names its split (train, validation or valid, test). If only one split is used, files without such a word
    belong to it. The token cache of local files depends on their content, that of a download on its name and revision: if the
    revision is a branch that moves on, the cache stays as it is, and its manifest names the commit.

    Args:
        name: its name in messages, and its folder below cache_dir.
        hub: data set on the Hugging Face hub, user/name. Only its files of text are read; code in it is never run.
        train: split to train on; None: no training text.
        valid: held-out split; None: hold out the last `valid_documents` of `train`.
        valid_documents: how many documents to hold out; None if `valid` is given.
        subset: folder inside the data set that holds the files; None: all of it.
        revision: branch, tag or commit on the hub.
        text_key: column that holds the text (of .txt files every line is a document).
        path: local folder of the files; None: `cache_dir/name`.
        normaliser, wrap, cache_dir, processes: see `Corpus`.

    Raises:
        ValueError: both or neither of valid and valid_documents are given. On use: files are missing and cannot be fetched, a
            split has no file, or a file is unreadable.
    """

    def __init__(
        self,
        name: Text,
        hub: Text,
        train: str | None = "train",
        valid: str | None = "validation",
        valid_documents: Count | None = None,
        subset: str | None = None,
        revision: Text = "main",
        text_key: Text = "text",
        path: Existing | None = None,
        normaliser: Normaliser | None = None,
        wrap: FrameName = "plain",
        cache_dir: Folder | None = None,
        processes: Count | None = None,
    ):
        super().__init__(normaliser, wrap, cache_dir, processes)
        if (valid is None) == (valid_documents is None):
            raise ValueError("data.valid names the held-out split, or is null with data.valid_documents given: one of the two")
        if valid_documents is not None and train is None:
            raise ValueError(f"data.valid_documents={valid_documents} is of the split data.train, which is null")
        self.name, self.hub, self.subset, self.revision, self.text_key = name, hub, subset, revision, text_key
        self.train, self.valid, self.valid_documents = train, valid, valid_documents
        self.path = None if path is None else Path(path)
        self._lengths: list[int] | None = None  # documents in each file

    @property
    def splits(self) -> tuple[Split, ...]:
        return ("valid",) if self.train is None else ("train", "valid")

    def raw_documents(self, split: Split) -> Iterator[str]:
        if split not in self.splits:
            raise ValueError(f"data={self.name} has no training text (data.train is null): it serves mode=ppl_eval")
        if self.valid_documents is None:
            return read_documents(self.files(self.train if split == "train" else self.valid), self.text_key)
        files = self.files(self.train)
        if self._lengths is None:
            self._lengths = [count_documents(file, self.text_key) for file in files]
        total = sum(self._lengths)
        cut = total - self.valid_documents
        if cut < 1:
            raise ValueError(
                f"data.valid_documents={self.valid_documents} leaves none of the {total} documents of {self.describe()}"
            )
        return read_range(files, self._lengths, self.text_key, *((0, cut) if split == "train" else (cut, total)))

    def source_fingerprint(self) -> dict[str, Any]:
        splits = {"train": self.train, "valid": self.valid, "valid_documents": self.valid_documents}
        common = {"splits": splits, "text_key": self.text_key}
        if self._is_download():
            return {"hub": self.hub, "revision": self.revision, "subset": self.subset, **common}
        digests = Digests(None if self.cache_dir is None else Path(self.cache_dir) / "digests.json")
        files = {name: self.files(name) for name in (self.train, self.valid) if name is not None}
        return {"files": {name: digests(found) for name, found in files.items()}, **common}

    def provenance(self) -> dict[str, Any]:
        if self._is_download():
            return self._download().provenance()
        return {"folder": str(self._folder()), "hub": self.hub}

    def describe(self) -> str:
        return self.name if self.subset is None else f"{self.name} ({self.subset})"

    def files(self, split: str | None) -> list[Path]:
        """The files of a split of the data set, in order, fetched if need be."""
        assert split is not None
        folder = self._folder()
        if self._is_download():
            try:
                names = self._download().fetch(lambda found: self._of_split(self._in_subset(found), split), split)
            except Unreachable as error:
                raise ValueError(self._what_to_do(str(error))) from error
        else:
            inside = folder / self.subset if self.subset is not None and (folder / self.subset).is_dir() else folder
            names = [(inside / name).relative_to(folder).as_posix() for name in self._of_split(files_below(inside), split)]
        if not names:
            raise ValueError(f"data={self.name}: no file of the split {split} in {folder}: {KINDS}, {split} in its name")
        kinds = sorted({str(reader_of(name)) for name in names})
        if len(kinds) > 1:  # most likely the same text in two formats
            raise ValueError(
                f"data={self.name}: {folder} holds the split {split} as {' and as '.join(kinds)}: leave one of them"
            )
        return [folder / name for name in names]

    def _of_split(self, names: list[str], split: str) -> list[str]:
        only = self.train is None or self.valid is None
        return files_of_split(names, split, only)

    def _in_subset(self, names: list[str]) -> list[str]:
        return names if self.subset is None else [name for name in names if name.startswith(f"{self.subset}/")]

    def _is_download(self) -> bool:
        """Whether the files come, or will come, from a download by this class."""
        if self.path is not None:
            return False
        folder = self._folder()
        return not folder.is_dir() or self._download().begun or not files_below(folder)

    def _download(self) -> Download:
        return Download(self.hub, self.revision, self._folder())

    def _folder(self) -> Path:
        if self.path is not None:
            if not self.path.is_dir():
                raise ValueError(f"data.path={self.path}: no such folder (seen from {Path.cwd()})")
            return self.path
        if self.cache_dir is None:
            raise ValueError(f"data={self.name} needs data.cache_dir, a folder to keep it in, or data.path")
        return Path(self.cache_dir) / self.name

    def _what_to_do(self, reason: str) -> str:
        splits = " and ".join(name for name in (self.train, self.valid) if name is not None)
        where = f"{self.hub}{'' if self.subset is None else f', folder {self.subset}'}, revision {self.revision}"
        return (
            f"data={self.name}: its files cannot be had from the Hugging Face hub ({reason}): put those of {splits} of the "
            f"data set {where} into {self._folder()} (or a folder that data.path names): {KINDS}, the split's word in each name"
        )
