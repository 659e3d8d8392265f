"""Data sets that hold ids of files, as The Stack v2 does. Files are fetched when their records are read."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from flm.data.tokenizers import Tokenizer
from flm.qwen.examples import Example, Texts, Unfit
from flm.ranges import Count, Text

MAX_BYTES = 1 << 24  # of a decompressed file, more than source code written by people has


class Contents(Protocol):
    """A store of files. Must be picklable, since other processes may read."""

    def __call__(self, file_id: str) -> bytes:
        """A file's bytes, decompressed. Raises OSError if it cannot be fetched, `Unfit` if it is damaged or too long."""
        ...


class Folder:
    """Files ID.gz, or uncompressed ID, in a local folder.

    Raises:
        ValueError: there is no such folder.
    """

    def __init__(self, path: Text | Path, max_bytes: Count = MAX_BYTES):
        self.path, self.max_bytes = Path(path), max_bytes
        if not self.path.is_dir():
            raise ValueError(f"{path}: there is no such folder with the contents of files by their ids")

    def __call__(self, file_id: str) -> bytes:
        if Path(file_id).name != file_id:
            raise Unfit(f"{file_id!r} is not a file's id")
        packed = self.path / f"{file_id}.gz"
        if packed.exists():
            return unpacked(packed.read_bytes(), file_id, self.max_bytes)
        plain = self.path / file_id
        if plain.stat().st_size > self.max_bytes:
            raise Unfit(f"{file_id} has more than {self.max_bytes} bytes")
        return plain.read_bytes()


class SoftwareHeritage:
    """The bucket of Software Heritage's archive, as files are in The Stack v2. Never run here: it needs credentials.

    Raises:
        ValueError: on first use: boto3 is not installed, or there are no credentials.
    """

    def __init__(self, bucket: Text = "softwareheritage", prefix: Text = "content", max_bytes: Count = MAX_BYTES):
        self.bucket, self.prefix, self.max_bytes = bucket, prefix, max_bytes
        self._client: tuple[int, Any] | None = None

    def _connected(self) -> Any:
        """The client of this process. A client made before a fork belongs to the parent."""
        if self._client is not None and self._client[0] == os.getpid():
            return self._client[1]
        try:
            import boto3
        except ImportError as error:
            raise ValueError("The Stack v2 holds file ids: pip install boto3 to fetch its files") from error
        if boto3.Session().get_credentials() is None:
            raise ValueError(
                "The Stack v2 holds file ids; its files lie in Software Heritage's bucket, for which AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY must be set; --include_stack_v1 needs neither"
            )
        self._client = os.getpid(), boto3.client("s3")
        return self._client[1]

    def __call__(self, file_id: str) -> bytes:
        client = self._connected()
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            body = client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{file_id}")["Body"]
            return unpacked(body.read(self.max_bytes + 1), file_id, self.max_bytes)
        except (BotoCoreError, ClientError) as error:
            raise OSError(f"{self.bucket}/{self.prefix}/{file_id}: {' '.join(str(error).split())}") from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None}


class FilesById:
    """Reads the file that a record names as one document, followed by an EOS, with nothing given.

    Args:
        contents: the store of the files.
        id_key, encoding_key: of the file's id and its text encoding in a record.
    """

    divisible = True

    def __init__(self, contents: Contents, id_key: Text = "blob_id", encoding_key: Text = "src_encoding"):
        self.contents, self.keys = contents, [id_key, encoding_key]
        self._last: tuple[str, str] | None = None

    def fingerprint(self) -> dict[str, Any]:
        return {"reader": "files by id", "keys": self.keys}

    def text(self, record: dict[str, Any]) -> str:
        file_id, encoding = (record[key] for key in self.keys)
        if not isinstance(file_id, str) or not file_id:
            raise Unfit(f'"{self.keys[0]}" holds {file_id!r}, not the id of a file')
        if self._last is None or self._last[0] != file_id:  # `__call__` asks for the same file again
            try:
                content = self.contents(file_id)
            except OSError as error:
                raise Unfit(f"the file {file_id} cannot be had: {' '.join(str(error).split())}") from error
            try:
                self._last = file_id, content.decode(encoding or "utf-8", errors="replace")
            except LookupError as error:
                raise Unfit(f"the file {file_id} is in an unknown encoding, {encoding!r}") from error
        return self._last[1]

    def __call__(self, record: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Example]:
        yield from Texts()({"text": self.text(record)}, tokenizer)


def unpacked(content: bytes, file_id: str, limit: int) -> bytes:
    """Decompressed gzip content. Raises `Unfit` if it is damaged, or longer than `limit` bytes."""
    try:
        stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        found = stream.decompress(content, limit + 1)
    except zlib.error as error:
        raise Unfit(f"{file_id} is not packed by gzip: {error}") from error
    if len(found) > limit:
        raise Unfit(f"{file_id} has more than {limit} bytes")
    if not stream.eof:
        raise Unfit(f"{file_id} ends in the middle")
    return found
