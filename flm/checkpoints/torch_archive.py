"""The zip file that torch.save writes, read by hand: one pickle, and one record of raw bytes per storage.

Nothing is extracted. Records are found by their exact name in the archive's index and memory-mapped in place.
"""

import struct
import zipfile
from pathlib import Path

import torch

MAX_PICKLE_BYTES = 32 << 20  # the largest part of a real one is a tokenizer, a few MiB


class TorchArchive:
    """An opened file, all of whose checksums were verified.

    Attributes:
        pickle: the bytes of its pickle.

    Raises:
        ValueError: the file is missing, of the format before torch 1.6, cut short, damaged, or not laid out as torch does.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{path}: no such checkpoint file")
        if self.path.suffix == ".safetensors":
            raise ValueError(f"{path}: weights alone do not say of what: name the exported folder, {self.path.parent}")
        if not zipfile.is_zipfile(self.path):
            raise ValueError(
                f"{path}: not a checkpoint, or cut short: not a complete torch zip file (torch's older format is not read)"
            )
        try:
            with zipfile.ZipFile(self.path) as archive:
                self._check(archive)
                self.pickle = archive.read(self._prefix + "data.pkl")
        except (zipfile.BadZipFile, OSError, RuntimeError, struct.error, EOFError, UnicodeError) as error:
            raise ValueError(f"{path}: not a readable checkpoint ({type(error).__name__}: {error})") from error
        self._mapped: torch.UntypedStorage | None = None
        self._storages: dict[str, torch.UntypedStorage] = {}

    def storage(self, key: str, size: int) -> torch.UntypedStorage:
        """The bytes of a storage, mapped copy-on-write and read from disk when touched.

        Raises:
            ValueError: there is no such record, or it is not of `size` bytes.
        """
        info = self._records.get(f"{self._prefix}data/{key}")
        if info is None:
            raise ValueError(f"{self.path}: damaged: no record of tensor storage {key[:40]!r}")
        if info.file_size != size:
            raise ValueError(
                f"{self.path}: refused: tensor storage {key[:40]} declares {size} bytes, its record has {info.file_size}"
            )
        if key not in self._storages:
            self._storages[key] = self._map(info) if size else torch.UntypedStorage(0)
        return self._storages[key]

    def _check(self, archive: zipfile.ZipFile) -> None:
        records = archive.infolist()
        names = [info.filename for info in records]
        odd = [name for name in names if name.startswith("/") or "\\" in name or ".." in name.split("/")]
        if odd:
            raise ValueError(f"{self.path}: refused: the archive names a path outside itself, {odd[0][:60]!r}")
        if len(set(names)) < len(names):
            raise ValueError(f"{self.path}: refused: the archive holds several records of one name")
        if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in records):
            raise ValueError(f"{self.path}: refused: compressed or encrypted records, which torch does not write")
        if sum(info.file_size for info in records) > self.path.stat().st_size:
            raise ValueError(f"{self.path}: refused: its records claim more bytes than the file has")
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{self.path}: not a readable checkpoint: a zip file, but not one that torch.save wrote")
        self._prefix = pickles[0].removesuffix("data.pkl")
        self._records = dict(zip(names, records, strict=True))
        if self._records[pickles[0]].file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"{self.path}: refused: its pickle is larger than {MAX_PICKLE_BYTES >> 20} MiB")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{self.path}: damaged: the checksum of {damaged} does not match")
        order = self._prefix + "byteorder"
        if order in self._records and archive.read(order) != b"little":
            raise ValueError(f"{self.path}: written on a big-endian machine, which is not read")

    def _map(self, info: zipfile.ZipInfo) -> torch.UntypedStorage:
        with open(self.path, "rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise ValueError(f"{self.path}: damaged: no record where the archive's index says {info.filename[:60]!r}")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))  # behind the name and extra fields
        size = self.path.stat().st_size
        if start + info.file_size > size:
            raise ValueError(f"{self.path}: damaged: record {info.filename[:60]!r} runs past the end of the file")
        if self._mapped is None:
            self._mapped = torch.UntypedStorage.from_file(str(self.path), False, size)
        found = self._mapped[start : start + info.file_size]
        return found if start % 16 == 0 else found.clone()  # aligned for the widest element, complex128
