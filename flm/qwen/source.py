"""One source of a mixture: files of records, streamed without end, in a new order each time.

R readers divide a source: each gets F // R of the F files for itself, and takes every R-th record of the remaining F % R. The
order of files changes every R epochs. In between, readers move on by one, so that each has every file once. The next record is
a function of a few numbers, a `Position`, so a resumed run opens the file where it stopped and continues.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

from flm.data.corpora.download import REACH_SECONDS
from flm.data.corpora.source_files import KINDS, files_below, files_of_split, reader_of, records
from flm.data.order import Permutation
from flm.data.tokenizers import Tokenizer
from flm.draws import mix_seed
from flm.qwen.examples import Example, ExampleReader, Unfit
from flm.ranges import Positive, Text

log = logging.getLogger(__name__)

WINDOW = 1000  # records of a file that are shuffled together and kept in memory


@dataclass
class Position:
    """The position of a reader in its source. All numbers count what is done, from 0.

    Attributes:
        epoch: passes over the source.
        file: the reader's files of this epoch.
        window: windows of the current file.
        record: the reader's records of the current window.
        example: examples of the current record.
        token: tokens of the current example.
    """

    epoch: int = 0
    file: int = 0
    window: int = 0
    record: int = 0
    example: int = 0
    token: int = 0

    def to_list(self) -> list[int]:
        return list(astuple(self))


class Source:
    """Files of one data set, on the Hugging Face hub or in a folder.

    Args:
        name: its key under data.sources.
        weight: its share of the tokens, relative to the other sources.
        reader: makes examples of its records.
        hub: data set on the hub, user/name. Its files are streamed and not stored, and no code in it is run.
        path: local folder of such files, in place of the hub.
        subset: folder inside the data set.
        revision: branch, tag or commit on the hub. A resumed run continues with the commit of its start.
        files: pattern of file names in the data set (data/train_sft-*.parquet); None: all whose names have no split but train.
        valid_fraction: share of the records that is held out. A hash of their text decides, so equal records stay together.

    Raises:
        ValueError: on use: there are no files, or one cannot be read. The message names the source.
    """

    def __init__(
        self,
        name: str,
        weight: Positive,
        reader: ExampleReader,
        hub: Text | None = None,
        path: Text | Path | None = None,
        subset: str | None = None,
        revision: str = "main",
        files: str | None = None,
        valid_fraction: float = 0.005,
    ):
        if (hub is None) == (path is None):
            raise ValueError(f"data.sources.{name}: needs hub, a data set of the hub, or path, a folder")
        self.name, self.weight, self.reader, self.hub = name, float(weight), reader, hub
        self.path = None if path is None else Path(path)
        self.subset, self.revision, self.pattern = subset, revision, files
        self._valid_fraction, self._held_out_below = valid_fraction, int(valid_fraction * (1 << 64))
        self._files: list[str] | None = None
        self._commit: str | None = None
        self._pinned: str | None = None

    def files(self) -> list[str]:
        """Paths or addresses of the files, sorted by name. They are looked up once."""
        if self._files is None:
            self._files = self._find_files()
            if not self._files:
                where = self.hub if self.path is None else self.path
                raise self._error(f"no file {self.pattern or 'of the split train'} in {where}{self._inside()}: {KINDS}")
        return self._files

    def fingerprint(self) -> str:
        """A hash of the names of the files."""
        return _hash([Path(file).name for file in self.files()])

    @property
    def commit(self) -> str | None:
        """The hub's commit of the files; None: they are of a folder, or were not looked up yet."""
        return self._commit

    def go_on_with(self, commit: str | None) -> None:
        """Uses the files of a commit of the hub, since `revision` may have moved on; None: of the current commit."""
        if self.path is None and commit is not None and commit != self._commit:
            self._pinned, self._files = commit, None

    def positions_depend_on(self) -> dict[str, Any]:
        """Plain values that determine the record at a `Position`."""
        sizes = None if self.path is None else _hash([Path(file).stat().st_size for file in self.files()])
        return {
            "names": self.fingerprint(),
            "sizes": sizes,
            "reader": self.reader.fingerprint(),
            "valid_fraction": self._valid_fraction,
        }

    def read(self, file: str, start: int = 0) -> Iterator[dict[str, Any]]:
        """Records of a file from number `start` on. Raises ValueError, which names source and file."""
        try:
            yield from islice(records(file, self.reader.keys), start, None)
        except ValueError as error:
            raise self._error(str(error).removeprefix("data: ")) from error

    def text(self, record: dict[str, Any], file: str) -> str:
        try:
            return self.reader.text(record)
        except Unfit as error:
            raise self._error(f"{file}: {error}") from error

    def examples(self, record: dict[str, Any], file: str, tokenizer: Tokenizer) -> list[Example]:
        try:
            return list(self.reader(record, tokenizer))
        except Unfit as error:
            raise self._error(f"{file}: {error}") from error

    def is_held_out(self, text: str) -> bool:
        return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "little") < (
            self._held_out_below
        )

    def held_out(self, count: int) -> Iterator[tuple[str, dict[str, Any], str]]:
        """The first `count` held-out records: text, record and file.

        Raises:
            ValueError: there is none.
        """
        found = seen = 0
        for file in self.files():
            for record in self.read(file):
                text = self.text(record, file)
                seen += 1
                if text and self.is_held_out(text):
                    yield text, record, file
                    found += 1
                    if found == count:
                        return
        if not found:
            raise self._error(f"none of its {seen} records is held out for validation: a larger data.valid_fraction")

    def _find_files(self) -> list[str]:
        if self.path is not None:
            inside = self.path if self.subset is None else self.path / self.subset
            if not inside.is_dir():
                raise self._error(f"no folder {inside} (seen from {Path.cwd()})")
            return [str(inside / name) for name in self._chosen(files_below(inside))]
        from huggingface_hub import HfApi

        try:
            info = HfApi().dataset_info(self.hub, revision=self._pinned or self.revision, timeout=REACH_SECONDS)
        except Exception as error:  # the client and its transport each raise their own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise self._error(f"{self.hub} of the hub cannot be had ({reason}); or give a folder as path") from error
        self._commit = info.sha
        inside = "" if self.subset is None else f"{self.subset}/"
        names = [file.rfilename for file in info.siblings or []]
        names = self._chosen([name.removeprefix(inside) for name in names if name.startswith(inside)])
        return [f"hf://datasets/{self.hub}@{info.sha}/{inside}{name}" for name in names]

    def _chosen(self, names: list[str]) -> list[str]:
        if self.pattern is None:
            return files_of_split(names, "train", only=True)
        return sorted(name for name in names if reader_of(name) and fnmatchcase(name, self.pattern))

    def _inside(self) -> str:
        return "" if self.subset is None else f", folder {self.subset}"

    def _error(self, what: str) -> ValueError:
        return ValueError(f"data.sources.{self.name}: {what}")


class SourceReader:
    """One of R readers of a source.

    Args:
        number: of this reader, in [0, R).
        readers: R.
        position: where it begins; None: at the beginning.
        seed: of the order of files and records.
        length: the longest indivisible example; longer ones are skipped and counted.
        deals: whether readers get files for themselves; False: they share all files, as in older runs.

    Attributes:
        at: the current position.
        passed_over: number of examples skipped so far.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        number: int,
        readers: int,
        seed: int,
        length: int,
        position: Position | None = None,
        deals: bool = True,
    ):
        self.source, self.tokenizer, self.number, self.readers = source, tokenizer, number, readers
        self.seed, self.length, self.passed_over = seed, length, 0
        self.at = Position() if position is None else position
        self._deals = deals
        self._open: tuple[int, int, Iterator[dict[str, Any]]] | None = None  # epoch, file, its remaining records
        self._window: list[tuple[dict[str, Any], str]] | None = None
        self._is_last = False  # whether this window is the file's last
        self._examples: list[Example] | None = None
        self._useless = 0  # consecutive epochs without an example that fits

    def take(self, room: int) -> Example | None:
        """The next example, or its first `room` tokens; None: it is indivisible and longer than `room`."""
        while True:
            example = self._next_example()
            if self.source.reader.divisible:
                start = self.at.token
                piece = example.tokens[start : start + room]
                self.at.token += len(piece)
                if self.at.token == len(example.tokens):
                    self._finish_example()
                return Example(piece, max(0, min(len(piece), example.given - start)))
            if len(example.tokens) > self.length:
                self.passed_over += 1
            elif len(example.tokens) > room:
                return None
            self._finish_example()
            if len(example.tokens) <= room:
                return example

    def _finish_example(self) -> None:
        self.at.token, self.at.example = 0, self.at.example + 1

    def _next_example(self) -> Example:
        while True:
            if self._window is None:
                self._load_window()
            assert self._window is not None
            if self.at.record >= len(self._window):
                self._finish_window()
                continue
            if self._examples is None:
                record, file = self._window[self.at.record]
                self._examples = self.source.examples(record, file, self.tokenizer)
            if self.at.example < len(self._examples):
                example = self._examples[self.at.example]
                if self.source.reader.divisible or len(example.tokens) <= self.length:
                    self._useless = 0
                return example
            self._examples, self.at.example, self.at.record = None, 0, self.at.record + 1

    def _finish_window(self) -> None:
        self._window, self._examples, self.at.record = None, None, 0
        if not self._is_last:
            self.at.window += 1
            return
        self.at.window, self.at.file = 0, self.at.file + 1
        if self.at.file == self._dealt() + len(self.source.files()) - self.readers * self._dealt():
            self.at.file, self.at.epoch, self._useless = 0, self.at.epoch + 1, self._useless + 1
            if self.number == 0:
                left_out = f"; {self.passed_over} examples so far did not fit" if self.passed_over else ""
                log.info("data.sources.%s: epoch %d begins%s", self.source.name, self.at.epoch + 1, left_out)
            if self._useless > 2 * self.readers:  # it has seen every record by then
                raise ValueError(
                    f"data.sources.{self.source.name}: an epoch of it has no example of at most model.length={self.length} "
                    "tokens to train on"
                )

    def _dealt(self) -> int:
        """The number of files that this reader has for itself in an epoch."""
        return len(self.source.files()) // self.readers if self._deals else 0

    def _file(self) -> tuple[int, bool]:
        """The index of the current file, and whether this reader has it for itself."""
        count, dealt, at = len(self.source.files()), self._dealt(), self.at
        order = Permutation(count, mix_seed(self.seed, at.epoch // self.readers if dealt else at.epoch))
        if at.file < dealt:
            return order(at.file * self.readers + (self.number + at.epoch) % self.readers), True
        return order(at.file + (self.readers - 1) * dealt), False

    def _load_window(self) -> None:
        """Loads this reader's records of the current window, without held-out ones, in the order of this epoch."""
        at, (number, is_alone) = self.at, self._file()
        file = self.source.files()[number]
        if self._open is None or self._open[:2] != (at.epoch, at.file):
            self._open = at.epoch, at.file, self.source.read(file, at.window * WINDOW)
        found = list(islice(self._open[2], WINDOW))
        self._is_last = len(found) < WINDOW
        # the reader's residue changes with file and epoch, so that the records of small files reach all readers
        first = at.window * WINDOW + number + at.epoch
        own = found if is_alone else [r for row, r in enumerate(found, first) if row % self.readers == self.number]
        own = [r for r in own if (text := self.source.text(r, file)) and not self.source.is_held_out(text)]
        if own:
            shuffled = Permutation(len(own), mix_seed(self.seed, at.epoch, number, at.window, self.number))
            own = [own[shuffled(index)] for index in range(len(own))]
        self._window = [(record, file) for record in own]


def _hash(values: list[Any]) -> str:
    return hashlib.sha256("\n".join(map(str, values)).encode()).hexdigest()[:16]
